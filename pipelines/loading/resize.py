"""DALI's resizing of square images."""

from typing import Any

from nvidia.dali import fn
from nvidia.dali.data_node import DataNode


def resized(images: DataNode, side: DataNode | int, **options: Any) -> DataNode:
    """``images`` of ``side`` x ``side`` pixels; ``options`` are those of ``fn.resize``."""
    pixels = fn.resize(images, resize_x=side, resize_y=side, **options)
    assert isinstance(pixels, DataNode)  # as of one node it makes one
    return pixels
