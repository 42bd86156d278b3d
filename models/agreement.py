"""Whether what was written of a network makes the network's embeddings, tried on random images."""

import math

import torch
from torch import Tensor, nn

from pipelines.common.errors import UserError


def random_inputs(model: nn.Module, count: int, input_size: int) -> tuple[Tensor, ...]:
    """Images (count, 3, side, side) in [-1, 1], and landmarks (count, 5, 2) where the network wants them."""
    images = torch.rand(count, 3, input_size, input_size) * 2 - 1
    return (images, torch.rand(count, 5, 2)) if getattr(model, "wants_landmarks", False) else (images,)


def relative_distance(theirs: Tensor, ours: Tensor) -> float:
    """The largest distance between embeddings (n, d), relative to the norm of ``ours``.

    NaN where both are zero, or one is not finite.
    """
    theirs, ours = theirs.double(), ours.double()
    return float(((theirs - ours).norm(dim=1) / ours.norm(dim=1)).max())


def check_agreement(distance: float, limit: float, whose: str, remedy: str = "") -> None:
    """Refuse a `relative_distance` between ``whose`` embeddings and the network's that is more than rounding.

    Raises:
        ValueError: when it is NaN, with the ``remedy``.
        RuntimeError: when it is larger than ``limit``.
    """
    if math.isnan(distance):
        raise UserError(f"the embeddings of random images are zero or not finite{remedy}")
    if distance > limit:
        raise RuntimeError(f"{whose} embeddings differ from the network's by {distance:.1e} of their norm")
