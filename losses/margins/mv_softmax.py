"""MV-Softmax: the logits of hard negatives (c_j > T(c_y)) are raised."""

from typing import Literal

from losses.margins.combined import CombinedMargin
from losses.margins.margin import BatchView, HardNegativeCurve
from losses.margins.options import Cosine, CosineMargin, Factor, Gradient, Scale


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
        m2, m3 = (0.0, m) if kind == "am" else (m, 0.0)
        super().__init__(s, 1.0, m2, m3, gradient=gradient, interclass_filter=interclass_filter)
        self.t = t

    def update(self, batch: BatchView) -> HardNegativeCurve:
        return HardNegativeCurve.fixed(self.own(batch.cos_y, batch) / self.s, (0, 0, 1 + self.t, self.t))

    def hard_negatives(self, batch: BatchView) -> HardNegativeCurve:
        return batch.state
