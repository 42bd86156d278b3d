"""Embeddings that are kept: those of an embedder that keeps none, and made once."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from evaluate.features import pieces
from evaluate.features.cache import CachedEmbedder
from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from evaluate.features.sums import embedding_sums
from tests.pipelines.face_source import COUNT, DAMAGED, ENCODED, SIZE, FaceSource

ROWS = 16  # images a file
FILES = -(-COUNT // ROWS)
ALONE = World(torch.device("cpu"))


class Corners(nn.Module):
    """Embeds an image as some of its pixels, of lengths of their own; counts the images."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return images[:, :, :5, 0].flatten(1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pieces, "_LEAST", ROWS)


def embedders(folder, world=ALONE, digest="a network", **options):
    """One that keeps what it makes, and one that does not."""
    options = {"batch_size": 7, "threads": 1, **options}
    kept = CachedEmbedder(Corners(), SIZE, world, cache=folder, digest=digest, **options)
    return kept, Embedder(Corners(), SIZE, world, **options)


def files(folder):
    return sorted(folder.glob("*/*.npy"))


@pytest.mark.parametrize("flip", [True, False])
def test_embeddings_are_those_of_the_network_bit_for_bit_and_made_once(tmp_path, flip):
    kept, plain = embedders(tmp_path, flip=flip)
    expected = plain(FaceSource())
    np.testing.assert_array_equal(kept(FaceSource()), expected)
    assert len(files(tmp_path)) == FILES and kept.model.images
    again, _ = embedders(tmp_path, flip=flip)
    np.testing.assert_array_equal(again(FaceSource()), expected)
    assert again.model.images == 0


def test_what_was_interrupted_goes_on(tmp_path):
    kept, plain = embedders(tmp_path, flip=False)
    kept(FaceSource())
    files(tmp_path)[1].unlink()
    files(tmp_path)[-1].unlink()
    again, _ = embedders(tmp_path, flip=False, batch_size=5)
    np.testing.assert_array_equal(again(FaceSource()), plain(FaceSource()))
    assert again.model.images == -(-(ROWS + COUNT % ROWS) // 5) * 5  # whole batches


def test_other_images_networks_and_views_have_folders_of_their_own(tmp_path):
    sources = FaceSource(), FaceSource({25: ENCODED[0]}), FaceSource({0: ENCODED[1], 1: ENCODED[0]})
    for number, source in enumerate(sources, start=1):
        kept, plain = embedders(tmp_path)
        np.testing.assert_array_equal(kept(source), plain(source))
        assert len(list(tmp_path.iterdir())) == number
    for number, options in enumerate(({"digest": "other"}, {"flip": False}, {"autocast": torch.bfloat16}), start=4):
        embedders(tmp_path, **options)[0](FaceSource())
        assert len(list(tmp_path.iterdir())) == number


def on_a_rank(folder):
    pieces._LEAST = ROWS  # of this process
    kept, _ = embedders(folder, World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()), flip=False)
    sums = embedding_sums(kept, FaceSource(), np.arange(COUNT) % 3, 3, "keep")
    again = FaceSource()
    return kept.model.images, kept(again), sums, sum(map(len, again.reads))


def test_ranks_share_the_work(ranks, tmp_path):
    _, plain = embedders(tmp_path, flip=False)
    expected = plain(FaceSource())
    sums = [expected[group::3].sum(axis=(0, 1), dtype=np.float64) for group in range(3)]
    found = ranks(2, on_a_rank, tmp_path)
    assert all(images < COUNT for images, *_ in found) and len(files(tmp_path)) == FILES
    assert [read for *_, read in found] == [COUNT, 0]  # to look embeddings up, the first rank reads for all
    for _, features, of_group, _ in found:
        np.testing.assert_array_equal(features, expected)
        np.testing.assert_allclose(of_group, sums, rtol=1e-6, atol=1e-5)


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(ValueError, match="image 20"):
        embedders(tmp_path)[0](FaceSource({20: DAMAGED["half"]}))
    kept, _ = embedders(tmp_path / "other")
    kept(FaceSource())
    damaged = files(tmp_path / "other")[2]
    whole = damaged.read_bytes()
    for content in (whole[:-2], b"", b"nothing" * 99, b"PK\x03\x04" + bytes(99), whole.replace(b"}", b"{")):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="000002.npy is damaged.*remove it"):
            kept(FaceSource())
