"""UniFace: every class is decided on by itself, against one threshold for all (Zhou et al., ICCV 2023)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.margins.margin import BatchView, Margin
from losses.margins.options import Cosine, CosineMargin, Factor, Scale


class UniFace(Margin):
    """Unified cross-entropy with a margin: softplus(b - s·(c_y - m)) + weight · Σ_{j≠y} softplus(s·c_j - b).

    b/s is the cosine that tells pairs of one identity from others; it is learned, without weight decay. The published
    code clamps s·c - b to [-s, s] on top.

    Args:
        weight: factor of the other classes (the paper's λ).
        b: the threshold's initial value; None for log(10·C), with sampling of the C that take part in a step.
    """

    reduction = "softplus"

    def __init__(
        self,
        s: Scale = 64.0,
        m: CosineMargin = 0.4,
        weight: Factor = 1.0,
        b: Factor | None = None,
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        self.m, self.weight, self.given = m, weight, b
        self.b = nn.Parameter(torch.tensor(0.0 if b is None else float(b)))

    @torch.no_grad()
    def begin(self, classes: int) -> None:
        if self.given is None:
            self.b.fill_(math.log(10 * classes))

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.s * (cos_y - self.m)

    def bias(self, batch: BatchView) -> Tensor:
        return self.b

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        assert reduced is not None  # the margin is competitive
        return F.softplus(self.b - target) + self.weight * reduced
