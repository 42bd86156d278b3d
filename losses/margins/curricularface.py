"""CurricularFace: hard negatives, weighted by how far the training has come.

A negative is hard for a row when its cosine exceeds the row's own, margin included: c_j > T(c_y).
"""

import torch
from torch import Tensor

from losses.margins.arcface import ArcFace
from losses.margins.margin import BatchView, HardNegativeCurve
from losses.margins.options import AngleMargin, Cosine, Gradient, Scale, Share


class CurricularFace(ArcFace):
    """ArcFace whose hard negatives become c·(t + c), with t following the mean cosine (Huang et al., CVPR 2020).

    Early in training t is near 0 and hard negatives count less than they would; as t grows they come to count more.

    Args:
        rate: share of a new batch in t ← rate·mean(c_y) + (1 - rate)·t, which comes before t is used.
    """

    t: Tensor

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleMargin = 0.5,
        rate: Share = 0.01,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, m, gradient=gradient, interclass_filter=interclass_filter)
        self.rate = rate
        self.register_buffer("t", torch.zeros(()))

    def update(self, batch: BatchView) -> HardNegativeCurve:
        self._follow(self.t, batch.mean(batch.cos_y), self.rate, batch)
        zero = torch.zeros_like(self.t)
        return HardNegativeCurve(self.own(batch.cos_y, batch) / self.s, torch.stack([zero, zero + 1, self.t, zero]))

    def hard_negatives(self, batch: BatchView) -> HardNegativeCurve:
        return batch.state
