"""Distances of a student's embeddings to a teacher's: each to its own, and of a batch as a whole."""

import torch
import torch.nn.functional as F
from torch import Tensor

_SAME = 1e-6  # squared distance up to which two are one point: float32 tells no more apart, and a root has no slope


def cosine_distance(students: Tensor, teachers: Tensor) -> Tensor:
    """Mean of 1 - cos between rows (n, d) and rows (n, d), (); half the squared distance of the unit vectors."""
    with torch.autocast(students.device.type, enabled=False):
        return 1 - F.cosine_similarity(students.float(), teachers.float()).mean()


def relational_distance(students: Tensor, teachers: Tensor) -> Tensor:
    """The distance-wise loss of relational knowledge distillation (Park et al., CVPR 2019, eqs. 5 to 7), ().

    The distances of all pairs of unit embeddings, divided by their mean, are compared by Huber's loss. The mean is over
    pairs of two; the published code counts a row with itself, too, so that its value is (n - 1) / n of this one. It is
    0 for one row.

    Args:
        students, teachers: (n, d) and (n, e): the two spaces need not have one size. n·n numbers are made of each.
    """
    students, teachers = _relative_distances(students), _relative_distances(teachers)
    return F.smooth_l1_loss(students, teachers, reduction="sum") / max(1, len(students))


def _relative_distances(embeddings: Tensor) -> Tensor:
    """(n·(n-1)/2,) distances between unit vectors, over their mean."""
    with torch.autocast(embeddings.device.type, enabled=False):  # what is left of a cosine near 1 needs all its digits
        units = F.normalize(embeddings.float())
        first, second = torch.triu_indices(len(units), len(units), 1, device=units.device)
        squared = (2 - 2 * units @ units.T)[first, second]
        same = squared < _SAME
        distances = torch.where(same, 1.0, squared).sqrt().masked_fill(same, 0.0)
        return distances / distances.mean().clamp(min=_SAME)
