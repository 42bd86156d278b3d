"""ElasticFace: a margin drawn anew for every row (Boutros et al., CVPR Workshops 2022)."""

from typing import Literal

import torch
from torch import Tensor

from losses.margins.combined import add_angle
from losses.margins.margin import BatchView, Margin
from losses.margins.options import Cosine, CosineMargin, Factor, Scale
from pipelines.common.errors import UserError

# The published mean and standard deviation of the margin, by kind; the last is that of the plus variants.
_PUBLISHED = {"arc": (0.5, 0.05, 0.0175), "cos": (0.35, 0.05, 0.02)}


class ElasticFace(Margin):
    """ArcFace's or CosFace's margin, drawn from N(m, σ) for every row of every batch.

    The draws are made of ``batch.uniform``, so they depend on the schedule alone: not on the ranks, nor on a resume.

    Args:
        kind: ``arc`` for a margin on the angle, ``cos`` for one on the cosine.
        m, sigma: mean and standard deviation; None for the published ones of the kind.
        plus: sort the draws so that the row with the smallest cosine to its centre gets the largest margin (ElasticFace
            +). The published code assigns the sorted draws by the inverse permutation, which is not this.
    """

    draws = True

    def __init__(
        self,
        s: Scale = 64.0,
        m: CosineMargin | None = None,
        sigma: Factor | None = None,
        kind: Literal["arc", "cos"] = "arc",
        plus: bool = False,
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        mean, *deviations = _PUBLISHED[kind]
        self.m = mean if m is None else m
        self.sigma = deviations[plus] if sigma is None else sigma
        self.kind, self.plus = kind, plus

    def update(self, batch: BatchView) -> Tensor:
        """(B,) margins."""
        if batch.uniform is None:
            raise UserError("elasticface draws its margins: the head needs a uniform random number for each row")
        half = torch.finfo(torch.float32).eps / 4
        margins = self.m + self.sigma * torch.special.ndtri(batch.uniform.float().clamp(half, 1 - 2 * half))
        if not self.plus:
            return margins
        # Rows without a class take no draw away from the others: both sort to the end.
        margins = margins.masked_fill(~batch.valid, torch.inf).sort().values
        order = batch.cos_y.masked_fill(~batch.valid, -torch.inf).argsort(descending=True, stable=True)
        return torch.empty_like(margins).scatter_(0, order, margins).masked_fill_(~batch.valid, self.m)

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        cos_y = cos_y.clamp(-1, 1)
        return self.s * (add_angle(cos_y, batch.state) if self.kind == "arc" else cos_y - batch.state)
