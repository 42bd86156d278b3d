"""Pixels as networks take them: levels 0 … 255 on [-1, 1], and back."""

import torch
from torch import Tensor


def normalise(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels in [0, 255] → [-1, 1], computed in float32 and returned as ``dtype``; a new tensor of the same layout."""
    return levels.to(torch.float32, copy=True).sub_(127.5).div_(127.5).to(dtype)


def to_levels(images: Tensor) -> Tensor:
    """The inverse of ``normalise`` for what was decoded: whole numbers 0 … 255, as float32."""
    return (images.float() * 127.5 + 127.5).round()
