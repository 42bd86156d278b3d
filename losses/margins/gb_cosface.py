"""GB-CosFace and GB-MagFace: own and other cosines on their sides of a global boundary (Chen et al., ACCV 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.margins.magface import Magnitude
from losses.margins.margin import BatchView, Margin
from losses.margins.options import Cosine, CosineMargin, Factor, Norm, Scale, Share
from pipelines.common.errors import UserError

_NONE = -2.0  # a boundary from before the first batch; those of batches are means of cosines


class GBCosFace(Margin):
    """½·softplus(2s(v - c_y + m)) + ½·softplus(2s(c_n - v + m)).

    c_n, their log-sum-exp over s, stands for all negatives, and v is a row's boundary: the middle of its c_y and c_n,
    drawn by ``alpha`` towards the global boundary, which follows the mean of the middles. No gradient flows through v.
    With alpha = 0 this is CosFace of margin 2m.

    Args:
        m: margin on either side of the boundary.
        low, high: limits of the global boundary.
        rate: share of a new batch in the global boundary, after the batch has used it; the first batch starts it.
    """

    boundary: Tensor

    def __init__(
        self,
        s: Scale = 32.0,
        m: CosineMargin = 0.16,
        alpha: Share = 0.15,
        low: Cosine = 0.5,
        high: Cosine = 0.7,
        rate: Share = 0.01,
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        if low > high:
            raise UserError(f"the boundary's limits must rise from low to high, not from {low} to {high}")
        self.m, self.alpha, self.low, self.high, self.rate = m, alpha, low, high, rate
        self.register_buffer("boundary", torch.tensor(_NONE))

    def margin(self, batch: BatchView) -> float | Tensor:
        """The margin, one or (B,)."""
        return self.m

    @torch.no_grad()
    def _towards_boundary(self, middle: Tensor, batch: BatchView) -> Tensor:
        """(B,) middles, drawn to the global boundary, which is brought up to date behind them."""
        mean = batch.mean(middle)
        boundary = torch.where(self.boundary > _NONE, self.boundary, mean).clamp(self.low, self.high)
        if self.training:
            followed = boundary.lerp(mean, self.rate)
            self.boundary.copy_(torch.where(self._counts(mean, batch), followed, self.boundary))
        return middle.lerp(boundary, self.alpha)

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        assert reduced is not None
        own = target / self.s
        other = reduced.clamp(min=-self.s) / self.s  # where there is no other class, as if one were opposite
        v = self._towards_boundary((own + other) / 2, batch)
        m, twice = self.share * self.margin(batch), 2 * self.s
        return (F.softplus(twice * (v - own + m)) + F.softplus(twice * (other - v + m))) / 2


class GBMagFace(GBCosFace):
    """GB-CosFace with MagFace's margin m(a), which grows with the embedding's norm, and its regulariser.

    The default margins are to GB-CosFace's .16 as MagFace's .45 and .8 are to ArcFace's .5.
    """

    trains_scale = True

    def __init__(
        self,
        s: Scale = 32.0,
        l_a: Norm = 10.0,
        u_a: Norm = 110.0,
        l_m: CosineMargin = 0.144,
        u_m: CosineMargin = 0.256,
        lambda_g: Factor = 35.0,
        alpha: Share = 0.15,
        low: Cosine = 0.5,
        high: Cosine = 0.7,
        rate: Share = 0.01,
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, l_m, alpha, low, high, rate, interclass_filter)
        self.magnitude = Magnitude(l_a, u_a, l_m, u_m, lambda_g)

    def margin(self, batch: BatchView) -> Tensor:
        return self.magnitude.margin(batch.norm)

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        return super().loss(target, reduced, batch) + self.magnitude.penalty(batch.norm)
