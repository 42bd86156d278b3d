"""Embeddings on disk, against numpy's of the same images."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist

from evaluate.features import pieces
from evaluate.features import store as module
from evaluate.features.network import Network, load_network
from evaluate.features.ranks import World
from evaluate.features.store import EmbeddingStore, store_key
from models import create_model
from pipelines.loading.landmarks import template_landmarks
from pipelines.loading.loader import read_once
from tests.evaluate.networks import write_onnx
from tests.pipelines.face_source import COUNT, DAMAGED, LABELS, SIZE, FaceSource

ROWS = 16  # images a file
FILES = -(-COUNT // ROWS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pieces, "_LEAST", ROWS)
    monkeypatch.setattr(module, "_BATCH", 7)


@pytest.fixture
def file(tmp_path):
    return write_onnx(tmp_path / "teacher.onnx", size=SIZE)


ALONE = World(torch.device("cpu"))


def filled(file, folder, source=None, world=ALONE, network=None, **options):
    store = EmbeddingStore(Path(folder), COUNT)
    options = {"threads": 1, "autocast": None, "max_bad_fraction": 0.05, **options}
    store.fill(network or load_network(file), source or FaceSource(), world, **options)
    return store


def expected(file, indices, mirrored):
    """Unit embeddings in float64, of images that are mirrored first and averaged over patches then."""
    (weights,) = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer)
    (batch,) = read_once(FaceSource(), np.asarray(indices), batch_size=COUNT, image_size=SIZE)
    images = batch.images.double().numpy()
    images = np.where(np.asarray(mirrored)[:, None, None, None], images[..., ::-1], images)
    means = images.reshape(len(images), 3, SIZE // 8, 8, SIZE // 8, 8).mean((3, 5))
    embeddings = means.reshape(len(images), -1) @ weights
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_rows_are_the_embeddings_of_images_and_mirror_images(file, tmp_path):
    store = filled(file, tmp_path / "store")
    assert store.dimension == 16 and len(content(store.folder)) == FILES
    indices = np.array([49, 0, 16, 15, 0, 31, 48])
    for mirrored in (np.zeros(7, bool), np.ones(7, bool), np.arange(7) % 3 == 0):
        np.testing.assert_allclose(store.read(indices, mirrored), expected(file, indices, mirrored), atol=1e-3)


def test_what_is_there_is_not_made_again(file, tmp_path):
    whole = content(filled(file, tmp_path / "store").folder)
    (tmp_path / "store/000001.npy").unlink()
    source = FaceSource()
    again = filled(file, tmp_path / "store", source)
    assert content(again.folder) == whole
    assert sorted(np.concatenate(source.reads).tolist()) == list(range(ROWS, 2 * ROWS))


def on_a_rank(file, folder):
    pieces._LEAST, module._BATCH = ROWS, 7  # of this process
    source = FaceSource()
    store = filled(file, folder, source, World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))
    return len(np.concatenate(source.reads)), store.read(np.arange(COUNT), LABELS > 3)


def test_ranks_share_the_work(ranks, file, tmp_path):
    one = filled(file, tmp_path / "one")
    two = ranks(2, on_a_rank, file, str(tmp_path / "two"))
    assert [read for read, _ in two] == [2 * ROWS, COUNT - 2 * ROWS]
    for _, rows in two:
        np.testing.assert_allclose(rows, one.read(np.arange(COUNT), LABELS > 3), atol=1e-6)


def test_images_that_cannot_be_read_have_no_embedding(file, tmp_path):
    store = filled(file, tmp_path / "store", FaceSource({20: DAMAGED["half"]}, unreadable=(21,)))
    sound = np.delete(np.arange(COUNT), [20, 21])
    mirrored = np.zeros(COUNT, bool)
    np.testing.assert_allclose(store.read(sound, mirrored[sound]), expected(file, sound, mirrored[sound]), atol=1e-3)
    for index in (20, 21):
        with pytest.raises(ValueError, match=f"000001.npy has no embedding of image {index}.*remove it"):
            store.read(np.array([3, index]), mirrored[:2])
    with pytest.raises(ValueError, match="2 of 50 images are bad.*max_bad_fraction"):
        filled(file, tmp_path / "other", FaceSource(unreadable=(20, 21)), max_bad_fraction=0.03)


class Points(torch.nn.Module):
    """Means of the colours, and where the eyes are."""

    wants_landmarks = True

    def forward(self, images, landmarks):
        return torch.cat([images.mean((2, 3)), landmarks[:, :2].flatten(1)], 1)


def places(indices):
    """Landmarks that are another image's for each index."""
    return np.random.default_rng(0).random((COUNT, 5, 2), np.float32)[indices]


def test_a_network_gets_the_landmarks_of_its_images(tmp_path):
    """Those of mirror images are mirrored: the eyes change places."""
    store = filled(None, tmp_path / "store", network=Network(Points(), SIZE), landmarks=places)
    indices = np.array([3, 40])
    (batch,) = read_once(FaceSource(), indices, batch_size=2, image_size=SIZE)
    means, eyes = batch.images.mean((2, 3)).numpy(), places(indices)[:, :2]
    for mirrored, points in ((False, eyes), (True, eyes[:, ::-1] * [-1, 1] + [1, 0])):
        rows = np.concatenate([means, points.reshape(2, 4)], axis=1)
        wanted = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(store.read(indices, np.full(2, mirrored)), wanted, atol=1e-3)


def test_the_key_tells_landmarks_apart_from_the_templates():
    network, source = Network(Points(), SIZE), FaceSource()
    key = store_key(network, source)
    assert store_key(network, source, template_landmarks) == key  # as it was before there were others
    assert store_key(network, source, places) != key
    assert store_key(network, source, lambda indices: places(indices) / 2) != store_key(network, source, places)


def test_embeddings_that_are_not_finite_name_an_image(file, tmp_path):
    class Zero(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) * (images.mean((1, 2, 3)) > 0)[:, None]

    with pytest.raises(ValueError, match="network's embeddings are not finite for .* memory, image"):
        filled(file, tmp_path / "store", network=Network(Zero(), SIZE))


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-2], lambda data: b"nothing" * 99, lambda data: b"", lambda data: data.replace(b"}", b"{")],
)
def test_a_damaged_file_is_named(file, tmp_path, damage):
    store = filled(file, tmp_path / "store")
    path = tmp_path / "store/000002.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="000002.npy is damaged"):
        store.read(np.array([33]), np.array([False]))


def test_the_key_tells_networks_and_images_apart(file, tmp_path):
    network, other = load_network(file), write_onnx(tmp_path / "other.onnx", seed=1, size=SIZE)
    torch.manual_seed(0)
    backbones = [create_model("mbf", 16, 48, width=0.25).eval() for _ in range(2)]
    keys = [
        store_key(network, FaceSource()),
        store_key(load_network(other), FaceSource()),
        store_key(load_network(file, given={"bgr": True}), FaceSource()),
        store_key(network, FaceSource(labels=LABELS[::-1])),
        store_key(network, FaceSource({49: DAMAGED["garbage"]})),
        store_key(network, FaceSource(), autocast=torch.bfloat16),
        *(store_key(Network(backbone, SIZE), FaceSource()) for backbone in backbones),
    ]
    assert len(set(keys)) == len(keys)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(file.read_bytes())
    assert store_key(load_network(copy), FaceSource()) == keys[0]
    assert store_key(Network(backbones[0], SIZE), FaceSource()) == keys[-2]
