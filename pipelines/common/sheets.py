"""Sheets of pictures: rows of square tiles."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

Tile = Image.Image | np.ndarray | None  # an RGB picture, as an array uint8 (h, w, 3), or an empty place


def sheet(rows: Sequence[Sequence[Tile]], side: int = 112, background: str = "black") -> Image.Image:
    """The pictures in rows, each resized to ``side`` x ``side`` pixels; as wide as the longest row."""
    page = Image.new("RGB", (side * max(map(len, rows), default=0), side * len(rows)), background)
    for top, row in enumerate(rows):
        for left, tile in enumerate(row):
            if tile is not None:
                picture = Image.fromarray(tile) if isinstance(tile, np.ndarray) else tile
                page.paste(picture.resize((side, side)), (side * left, side * top))
    return page
