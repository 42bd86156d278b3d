"""SphereFace-R: a factor on the angle that falls all the way (Liu et al., "SphereFace Revived", TPAMI 2022).

With hard feature normalisation, a fixed scale. Its soft one, logits scaled by ‖x‖ with a penalty on |‖x‖ - s|, would
need the derivative of all other logits by the norm, which no pass over the centres makes.
"""

import math

import torch
from torch import Tensor

from losses.margins.combined import angle, derived
from losses.margins.margin import BatchView, Margin
from losses.margins.options import AngleFactor, Cosine, Factor, Gradient, Scale


class SphereFaceR1(Margin):
    """weight/s · cross-entropy with the target s·cos(min(m·θ, π)): version 1.

    Args:
        gradient: ``straight_through`` takes d target / d cos to be s, the paper's characteristic gradient detachment.
        weight: 50 in the published configs; with ``weight`` = s it is the cross-entropy itself.
    """

    def __init__(
        self,
        s: Scale = 60.0,
        m: AngleFactor = 1.4,
        weight: Factor = 50.0,
        *,
        gradient: Gradient = "straight_through",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        self.m, self.weight, self.gradient = m, weight, gradient

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.s * self._moved(cos_y, (self.m * angle(cos_y)).clamp(max=math.pi))

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        return self.weight / self.s * super().loss(target, reduced, batch)

    def _moved(self, cos: Tensor, moved: Tensor) -> Tensor:
        """The cosines of angles that were moved."""
        return derived(cos, torch.cos(moved), self.gradient)


class SphereFaceR2(SphereFaceR1):
    """The same with the margin on the other classes, whose logits are s·cos(θ/m), and none on the own: version 2."""

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.without_margin(cos_y)

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        value = self._moved(cos, angle(cos) / (1 + (self.m - 1) * self.share))
        if self.interclass_filter is not None:
            value = value.masked_fill(cos > self.interclass_filter, 0.0)
        return self.s * value
