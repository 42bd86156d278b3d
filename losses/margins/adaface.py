"""AdaFace: a margin that follows the quality of the image."""

import torch
from torch import Tensor

from losses.margins.combined import add_angle, derived
from losses.margins.margin import BatchView, Margin
from losses.margins.options import AngleMargin, Cosine, Factor, Gradient, Scale, Share

_NORM_RANGE = (1e-3, 100.0)

_STD_FLOOR = 1e-3


class AdaFace(Margin):
    """s·(cos(θ - m·z) - (m + m·z)) with z in [-1, 1] the image's quality among recent ones (Kim et al., CVPR 2022).

    z = h·(a - mean)/std of the norms a, cut to its range; mean and standard deviation follow the batches', a share
    ``t_alpha`` of each new one, before they are used. No gradient flows through the norms.

    Args:
        gradient: ``exact``, as in AdaFace's own code; ``straight_through``, d target / d cos = s, as in CVLface's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleMargin = 0.4,
        h: Factor = 0.333,
        t_alpha: Share = 0.01,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        self.m, self.h, self.t_alpha, self.gradient = m, h, t_alpha, gradient
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def update(self, batch: BatchView) -> Tensor:
        """(B,) z."""
        norm = batch.norm.detach().clamp(*_NORM_RANGE)
        mean, count = batch.mean(norm), batch.valid.sum()
        variance = ((norm - mean).square() * batch.valid).sum() / (count - 1)
        self._follow(self.mean, mean, self.t_alpha, batch)
        self._follow(self.std, torch.where(count > 1, variance.sqrt(), self.std), self.t_alpha, batch)
        return (self.h * (norm - self.mean) / (self.std + _STD_FLOOR)).clamp(-1, 1)

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        z = batch.state
        value = add_angle(cos_y.clamp(-1, 1), -self.m * z) - (self.m + self.m * z)
        return self.s * derived(cos_y, value, self.gradient)
