"""Every kind of image file: one reading of it, DALI's, Pillow's and OpenCV's."""

import cv2
import numpy as np
import pytest
import torch

from pipelines.common.formats import IMAGE_SUFFIXES, SUFFIXES, image_suffix
from pipelines.common.header import HeaderReader
from pipelines.common.pillow import decode
from pipelines.loading.decoder import Decoder, UndecodableError
from tests.pipelines.kinds import SIDE, foreign, kinds

KINDS, FOREIGN = kinds(), foreign()
SUFFIX_OF = {"jpeg 2000": ".jp2", "jpeg": ".jpg", "tiff": ".tif", "pgm": ".ppm", "pbm": ".ppm"} | {
    suffix[1:]: suffix for suffix in SUFFIXES
}


def decoded(encoded):
    """By the graph that training uses, (h, w, 3)."""
    decoder = Decoder(batch_size=1, image_size=SIDE, device=torch.device("cpu"), threads=1)
    decoder.submit([np.frombuffer(encoded, np.uint8)])
    return decoder.result()[0][0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_one_reading(kind):
    encoded = KINDS[kind]
    # Of CMYK and TIFF's 16 bits OpenCV's rounding is its own.
    tolerance = 1 if "cmyk" in kind or kind == "tiff 16 bits" else 0
    expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert abs(np.asarray(decode(encoded), int) - expected).max() <= tolerance
    pixels = decoded(encoded)
    assert abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_headers(kind):
    header = HeaderReader().read(np.frombuffer(KINDS[kind], np.uint8))
    image = cv2.imdecode(np.frombuffer(KINDS[kind], np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    assert header.size == image.shape[1::-1]
    assert header.suffix == image_suffix(KINDS[kind]) and header.suffix in SUFFIXES
    assert header.suffix == next(suffix for name, suffix in SUFFIX_OF.items() if kind.startswith(name))


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_image_is_said_to_be_none(kind):
    with pytest.raises(UndecodableError) as error:
        decoded(FOREIGN[kind])
    (reason,) = error.value.reasons.values()
    assert reason and "\n" not in reason
    if "huge" in kind:
        assert "20000 x 20000" in reason


def test_a_reader_that_has_seen_nothing_knows_nothing():
    """Not even of bytes that begin with zero, as JPEG 2000 does."""
    assert HeaderReader().read(KINDS["jpeg 2000"]).suffix == ".jp2"


def test_suffixes_are_of_one_kind_each():
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    assert all(suffixes[0] == kind for kind, suffixes in SUFFIXES.items())
