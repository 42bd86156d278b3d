"""Samples read once, in order, without a schedule."""

import numpy as np
import pytest
import torch

from pipelines.loading.decoder import Decoder
from pipelines.loading.loader import read_batches, read_once
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import COUNT, DAMAGED, ENCODED, LABELS, SIZE, FaceSource, decoded, face, jpeg


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_read_once_shows_all_in_order(batch_size):
    indices = np.arange(COUNT)[::-1]
    batches = list(read_once(FaceSource(), indices, batch_size=batch_size, image_size=SIZE))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.array_equal(torch.cat([batch.indices for batch in batches]), indices)
    assert np.array_equal(torch.cat([batch.labels for batch in batches]), LABELS[indices])
    for image, index in zip(torch.cat([batch.images for batch in batches]), indices):
        assert (image - decoded(index)).abs().mean() < 0.02
    assert batches[0].uniforms.shape == (len(batches[0].images), 0)


def test_read_once_of_nothing():
    assert list(read_once(FaceSource(), np.arange(0), batch_size=4)) == []


def test_read_once_of_images_without_classes_and_of_other_sizes():
    source = MemorySource([ENCODED[0], jpeg(face(1, 100)), jpeg(face(2, 31))])
    (batch,) = read_once(source, np.arange(3), batch_size=4, image_size=SIZE)
    assert batch.labels.tolist() == [-1, -1, -1]
    assert batch.images.shape == (3, 3, SIZE, SIZE)
    assert (batch.images[1] - decoded(1)).abs().mean() < 0.1


def test_read_once_names_a_bad_image():
    with pytest.raises(ValueError, match="memory, image 20"):
        list(read_once(FaceSource({20: DAMAGED["half"]}), np.arange(COUNT), batch_size=8, image_size=SIZE))
    with pytest.raises(OSError, match="image 21"):
        list(read_once(FaceSource(unreadable=(21,)), np.arange(COUNT), batch_size=8, image_size=SIZE))


def test_bad_images_are_told_of_and_black():
    source = FaceSource({20: DAMAGED["half"], 30: DAMAGED["empty"]}, unreadable=(21,))
    decoder = Decoder(batch_size=8, image_size=SIZE, device=torch.device("cpu"), threads=1)
    told = {}
    for batch in read_batches(source, np.arange(16, 48).reshape(4, 8), decoder, on_bad=told.__setitem__):
        for image, index in zip(batch.images, batch.indices.tolist()):
            expected = torch.full_like(image, -1) if index in (20, 21, 30) else decoded(index)
            assert (image - expected).abs().mean() < 0.02
            assert (index in told) == (index in (20, 21, 30)), "told before its batch"
    assert told.keys() == {20, 21, 30} and "Input/output" in told[21]
