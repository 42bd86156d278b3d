"""Landmarks that go with their images: read by rows, mirrored and cropped as the pictures are, whatever the ranks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pipelines.common.alignment import TEMPLATE
from pipelines.loading.augment import AUGMENTATIONS
from pipelines.loading.draws import chance
from pipelines.loading.landmarks import LandmarkFile, landmarks_beside, mirrored, template_landmarks
from pipelines.loading.loader import read_once
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import COUNT, FaceSource, make, take

SIDE = 64


def test_rows_are_read_by_index(tmp_path):
    landmarks = np.random.default_rng(0).random((7, 5, 2)).astype(np.float32)
    np.save(tmp_path / "landmarks.npy", landmarks)
    read = LandmarkFile(tmp_path / "landmarks.npy", 7)
    np.testing.assert_array_equal(read(np.array([3, 0, 6, 3])), landmarks[[3, 0, 6, 3]])


def test_a_file_beside_a_set_is_found(tmp_path):
    assert landmarks_beside(tmp_path / "lfw.bin", 7) is template_landmarks
    landmarks = np.random.default_rng(0).random((7, 5, 2)).astype(np.float32)
    np.save(tmp_path / "lfw.landmarks.npy", landmarks)
    np.testing.assert_array_equal(landmarks_beside(tmp_path / "lfw.bin", 7)(np.arange(7)), landmarks)


def test_files_that_do_not_fit_are_told(tmp_path):
    path = tmp_path / "landmarks.npy"
    for array, message in (
        (np.zeros((6, 5, 2), np.float32), r"float32 \(6, 5, 2\); landmarks of this data set are float32 \(7, 5, 2\)"),
        (np.zeros((7, 5, 2)), "holds float64"),
        (np.zeros((7, 10), np.float32), r"holds float32 \(7, 10\)"),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match=message):
            LandmarkFile(path, 7)
    path.write_bytes(b"0.5 0.5 0.5")
    with pytest.raises(ValueError, match="no .npy file of landmarks"):
        LandmarkFile(path, 7)
    landmarks = np.zeros((7, 5, 2), np.float32)
    landmarks[4, 1] = np.nan
    np.save(path, landmarks)
    with pytest.raises(ValueError, match="the landmarks of image 4 are not finite"):
        LandmarkFile(path, 7)(np.array([2, 4]))


def test_the_template_is_that_of_aligned_faces():
    (points,) = template_landmarks(np.array([5]))
    np.testing.assert_allclose(points * 112 - 0.5, np.stack([TEMPLATE.real, TEMPLATE.imag], 1), atol=1e-4)
    (mirror,) = mirrored(torch.from_numpy(points[None])).numpy()
    np.testing.assert_allclose(mirror[:, 1], points[[1, 0, 2, 4, 3], 1])
    assert mirror[0, 0] < mirror[2, 0] < mirror[1, 0] and mirror[3, 0] < mirror[4, 0]  # left is left again


def spots():
    """Images with a white spot at one of their five landmarks: image i at landmark i % 5. And the landmarks."""
    rng = np.random.default_rng(1)
    landmarks = rng.uniform(0.4, 0.6, (40, 5, 2)).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    images = []
    for index, points in enumerate(landmarks):
        column, row = points[index % 5] * SIDE
        spot = 255 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 18)
        picture = np.repeat(spot.astype(np.uint8)[..., None], 3, 2)
        images.append(cv2.imencode(".png", picture)[1].tobytes())
    return MemorySource(images, np.zeros(40, np.int64)), landmarks


@pytest.mark.parametrize("augment", ["none", "flip", "cropped"])
def test_landmarks_move_as_their_images_do(monkeypatch, augment):
    strong = AUGMENTATIONS["strong"]
    still = {name: chance(0.0) for name in ("recolour", "blur", "distort", "erase")}
    cropped = replace(strong, draws={**strong.draws, **still, "crop": chance(0.8)})
    monkeypatch.setitem(AUGMENTATIONS, "cropped", cropped)
    source, landmarks = spots()
    batches = take(make(source, image_size=SIDE, augment=augment, landmarks=lambda indices: landmarks[indices]), 10)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    mirrored_images = 0
    for batch in batches:
        assert batch.inputs[0] is batch.images and batch.inputs[1] is batch.landmarks
        flips = [False] * 8 if batch.mirrored is None else batch.mirrored.tolist()
        for image, index, points, flip in zip(batch.images, batch.indices, batch.landmarks.numpy(), flips, strict=True):
            grey = (image.mean(0).numpy() + 1).clip(0.1) - 0.1
            centre = np.array([(grey * x).sum(), (grey * y).sum()]) / grey.sum()
            number = int(index) % 5
            assert np.linalg.norm(points[[1, 0, 2, 4, 3][number] if flip else number] * SIDE - centre) < 0.5
            mirrored_images += flip
    assert 20 < mirrored_images < 60 or augment == "none"


def test_ranks_and_bad_images_change_nothing():
    landmarks = np.random.default_rng(2).random((COUNT, 5, 2)).astype(np.float32)
    options = {"landmarks": lambda indices: landmarks[indices], "augment": "strong"}
    whole = take(make(FaceSource(unreadable=(3, 30)), max_bad_fraction=0.5, **options), 7)
    shares = [
        take(
            make(
                FaceSource(unreadable=(3, 30)), max_bad_fraction=0.5, batch_size=4, rank=rank, world_size=2, **options
            ),
            7,
        )
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.landmarks, torch.cat([part.landmarks for part in parts]))
    plain = next(
        make(FaceSource(unreadable=(3, 30)), max_bad_fraction=0.5, augment="none", landmarks=options["landmarks"])
    )
    np.testing.assert_array_equal(plain.landmarks, landmarks[plain.indices])
    assert next(make()).landmarks is None


def test_evaluation_reads_landmarks_with_images():
    landmarks = np.random.default_rng(3).random((COUNT, 5, 2)).astype(np.float32)
    indices = np.array([4, 1, 9])
    batches = list(read_once(FaceSource(), indices, batch_size=2, image_size=32, landmarks=lambda i: landmarks[i]))
    np.testing.assert_array_equal(torch.cat([batch.landmarks for batch in batches]), landmarks[indices])
