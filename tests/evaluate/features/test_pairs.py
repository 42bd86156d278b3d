"""Pairs of a list and a folder of images, RFW's ``X_pairs.txt``, and what is embedded of pairs."""

import numpy as np
import pytest
import torch

from evaluate.features.embed import Embedder
from evaluate.features.pairs import PairImages, read_pairs
from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from pipelines.sources.memory import MemorySource
from tests.pipelines.photos import jpeg

REPEATED = [0, 1, 0, 2, 1, 1]  # which of three images each image of three pairs is
PEOPLE = ("m.01", "m.02", "m.03")


def write(folder, images):
    """Two images of each person, and ten pairs of them as lines of RFW's list."""
    for place, person in enumerate(PEOPLE):
        (images / person).mkdir(parents=True)
        for number in (1, 2):
            suffix = "png" if person == "m.02" else "jpg"
            (images / person / f"{person}_{number:04d}.{suffix}").write_bytes(jpeg(2 * place + number))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "African_pairs.txt"
    genuine = [f"{person}\t1\t2" for person in PEOPLE] * 2
    impostor = ["m.01\t1\tm.02\t1", "m.01\t2\tm.03\t2", "m.03\t1\tm.02\t2", "m.02\t1\tm.03\t1"]
    path.write_text("\n".join([*genuine, *impostor]) + "\n")
    return path


@pytest.mark.parametrize("lists, images", [("txts/African", "data/African"), (".", "African"), (".", ".")])
def test_images_lie_as_in_the_release_or_beside_the_list(tmp_path, lists, images):
    pairs = read_pairs(write(tmp_path / lists, tmp_path / images))
    assert pairs.same.tolist() == [True] * 6 + [False] * 4
    assert pairs.encoded[:2] == [jpeg(1), jpeg(2)]
    assert pairs.encoded[-4:] == [jpeg(5), jpeg(4), jpeg(3), jpeg(5)]


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path, tmp_path / "African")
    (tmp_path / "African/m.03/m.03_0002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 2 of 'm.03' is listed, and there is no .*m.03_0002.jpg"):
        read_pairs(path)
    (tmp_path / "African").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="of whom there is no folder in .*African"):
        read_pairs(path)
    path.write_text("m.01\t1\t2\n")
    (tmp_path / "other").rename(tmp_path / "African")
    with pytest.raises(ValueError, match="1 pairs, too few"):
        read_pairs(path)


def test_two_images_of_one_number_are_told(tmp_path):
    path = write(tmp_path, tmp_path / "African")
    (tmp_path / "African/m.01/._m.01_0001.jpg").write_bytes(b"of macOS")
    (tmp_path / "African/m.01/m.01_0001.txt").write_bytes(b"no image")
    for suffix in ("jpg", "png"):
        (tmp_path / f"African/m.01/m.01_0003.{suffix}").write_bytes(jpeg(9))  # which no pair has
    assert read_pairs(path).encoded[0] == jpeg(1)
    (tmp_path / "African/m.01/m.01_0001.png").write_bytes(jpeg(9))
    with pytest.raises(UserError, match=r"m\.01_0001\.(jpg|png) and .*m\.01_0001\.(jpg|png) may both be meant"):
        read_pairs(path)


class Means(torch.nn.Module):
    """Means of the image's parts, moved by the eyes: it is told which images it sees."""

    wants_landmarks = True

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images, landmarks):
        self.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) + landmarks[:, 0].sum(1, keepdim=True)


def embedder(model, batch_size):
    return Embedder(model, 56, World(torch.device("cpu")), batch_size=batch_size, threads=1)


def test_an_image_of_several_pairs_is_embedded_once(tmp_path):
    encoded = [jpeg(seed) for seed in REPEATED]
    images, model = PairImages(tmp_path / "x.bin", encoded), Means()
    assert images.rows.tolist() == REPEATED and len(images.source) == 3
    found = images.embedded(embedder(model, 3))
    assert model.seen == 2 * 3
    np.testing.assert_allclose(found, embedder(Means(), 6)(MemorySource(encoded)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["x.bin", "x.xz", "x.bin.xz"])
def test_the_same_image_with_other_landmarks_is_another(tmp_path, name):
    encoded = [jpeg(seed) for seed in REPEATED]
    landmarks = np.zeros((6, 5, 2), np.float32)
    landmarks[4:] = 0.5
    np.save(tmp_path / "x.landmarks.npy", landmarks)
    images = PairImages(tmp_path / name, encoded)
    assert images.rows.tolist() == [0, 1, 0, 2, 3, 3]
    found = images.embedded(embedder(Means(), 4))
    expected = embedder(Means(), 6)(MemorySource(encoded), landmarks.__getitem__)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(found[1] - found[4]).max() > 0.1


def test_messages_tell_where_an_image_first_stands_in_the_set(tmp_path):
    source = PairImages(tmp_path / "x.bin", [jpeg(seed) for seed in REPEATED]).source
    assert [source.describe(index) for index in range(3)] == [f"{tmp_path}/x.bin, image {place}" for place in (0, 1, 3)]
