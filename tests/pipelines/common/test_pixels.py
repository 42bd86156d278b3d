"""Levels on [-1, 1] and back, and sheets of pictures."""

import numpy as np
import torch
from PIL import Image

from pipelines.common.pixels import normalise, to_levels
from pipelines.common.sheets import sheet


def test_every_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8)
    images = normalise(levels)
    exact = (levels.double() - 127.5) / 127.5
    assert images.dtype == torch.float32 and (images.double() - exact).abs().max() < 2**-24
    assert (images[0], images[255]) == (-1, 1)
    assert torch.equal(to_levels(images), levels.float())


def test_floats_are_not_changed_in_place():
    levels = torch.tensor([0.0, 127.5, 255.0])
    assert normalise(levels).tolist() == [-1, 0, 1] and levels.tolist() == [0, 127.5, 255]


def test_a_sheet_has_rows_of_tiles():
    red, small = np.full((8, 8, 3), (255, 0, 0), np.uint8), Image.new("RGB", (4, 4), (0, 0, 255))
    page = np.asarray(sheet([[red, None, small], [small]], side=8, background="white"))
    assert page.shape == (16, 24, 3)
    white, blue = [255] * 3, [0, 0, 255]
    assert page[4::8, 4::8].tolist() == [[[255, 0, 0], white, blue], [blue, white, white]]
    assert sheet([]).size == (0, 0)
