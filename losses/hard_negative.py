"""Margins that also raise the logits of hard negatives: CurricularFace and MV-Softmax.

A negative is hard for a row when its cosine exceeds the row's own, margin included: c_j > T(c_y).
"""

from typing import Literal

import torch

from losses.angular import ArcFace, CombinedMargin, Gradient
from losses.margin import AngleMargin, Cosine, CosineMargin, Factor, Hard, Rows, Scale, Share


class CurricularFace(ArcFace):
    """ArcFace whose hard negatives become c·(t + c), with t following the mean cosine (Huang et al., CVPR 2020).

    Early in training t is near 0 and hard negatives count less than they would; as t grows they come to count more.

    Args:
        rate: share of a new batch in t ← rate·mean(c_y) + (1 - rate)·t, which comes before t is used.
    """

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

    def update(self, rows: Rows) -> Hard:
        self._follow(self.t, rows.mean(rows.cos_y), self.rate, rows)
        zero = torch.zeros_like(self.t)
        return Hard(self.target(rows.cos_y, rows) / self.s, torch.stack([zero + 1, self.t, zero]))

    def hard(self, rows: Rows) -> Hard:
        return rows.state


class MVSoftmax(CombinedMargin):
    """Hard negatives become (1 + t)·c + t (Wang et al., "Mis-classified vector guided softmax", AAAI 2020; adaptive).

    Args:
        kind: ``am`` for a margin on the cosine (CosFace), ``arc`` for one on the angle (ArcFace).
    """

    def __init__(
        self,
        s: Scale = 32.0,
        m: CosineMargin = 0.35,
        t: Factor = 0.2,
        kind: Literal["am", "arc"] = "am",
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        if kind not in ("am", "arc"):
            raise ValueError(f"mv_softmax has the kinds 'am' and 'arc', not {kind!r}")
        if t < 0:
            raise ValueError(f"mv_softmax raises hard negatives by t >= 0, not {t}")
        m2, m3 = (0.0, m) if kind == "am" else (m, 0.0)
        super().__init__(s, 1.0, m2, m3, gradient=gradient, interclass_filter=interclass_filter)
        self.t = t

    def update(self, rows: Rows) -> Hard:
        curve = torch.stack([rows.cos_y.new_full((), value) for value in (0, 1 + self.t, self.t)])
        return Hard(self.target(rows.cos_y, rows) / self.s, curve)

    def hard(self, rows: Rows) -> Hard:
        return rows.state
