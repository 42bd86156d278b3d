"""SphereFace2: every class is decided on by itself, with one bias for all (Wen et al., ICLR 2022)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.margins.margin import BatchView, HardNegativeCurve, Margin, cubic
from losses.margins.options import CosineMargin, Factor, OpenShare, Scale

# g(z) = 2·((z + 1)/2)^t - 1 multiplied out, by t: the factors of z³, z², z and 1.
_SIMILARITY = {1: (0.0, 0.0, 1.0, 0.0), 2: (0.0, 0.5, 1.0, -0.5), 3: (0.25, 0.75, 0.75, -0.75)}


class SphereFace2(Margin):
    """weight/s · [λ·softplus(-s·(g(c_y) - m) - b) + (1 - λ)·Σ_{j≠y} softplus(s·(g(c_j) + m) + b)].

    The paper's type C, its main one: a margin on the similarity g(z) = 2·((z + 1)/2)^t - 1, on both sides; its types A
    and M have one on the angle. The bias b is learned, without weight decay. It starts where own class and others pull
    alike at cosines of 0; with sampling, counting the classes that take part in a step. The gradient is the formula's;
    the authors' newer code takes that of g to be 1.

    Args:
        s: the paper's r.
        balance: the paper's λ, the own class's share in the loss.
        t: exponent of the similarity, which grows with it where cosines are high.
        weight: of the loss, which by itself is s times smaller than a softmax's; 50 in the published configs.
    """

    reduction = "softplus"

    def __init__(
        self,
        s: Scale = 40.0,
        m: CosineMargin = 0.4,
        balance: OpenShare = 0.7,
        t: Literal[1, 2, 3] = 3,
        weight: Factor = 50.0,
    ) -> None:
        super().__init__(s)
        self.m, self.balance, self.weight = m, balance, weight
        self.similarity = _SIMILARITY[t]
        self.b = nn.Parameter(torch.tensor(0.0))

    @torch.no_grad()
    def begin(self, classes: int) -> None:
        """Solves λ·σ(-a - b) = (1 - λ)·(classes - 1)·σ(a' + b) with a, a' = s·(g(0) ∓ m) for exp(a' + b)."""
        z = self.balance / ((1 - self.balance) * max(1, classes - 1))
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(-2 * self.s * self.m))
        root = 1 - z + root if z < 1 else 4 * z * math.exp(-2 * self.s * self.m) / (z - 1 + root)  # no digits cancel
        others = self.s * (self.similarity[-1] + self.m)
        self.b.fill_(math.log(2 * z) - math.log(max(root, 1e-300)) - others)

    def update(self, batch: BatchView) -> HardNegativeCurve:
        return HardNegativeCurve.fixed(torch.full_like(batch.cos_y, -2.0), self.similarity)  # of every cosine

    def hard_negatives(self, batch: BatchView) -> HardNegativeCurve:
        return batch.state

    def without_margin(self, cos_y: Tensor) -> Tensor:
        return self.s * cubic(self.similarity, cos_y)

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.without_margin(cos_y) - self.s * self.m

    def bias(self, batch: BatchView) -> Tensor:
        return -self.b - self.s * self.m * self.share

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        assert reduced is not None  # the margin is competitive
        own = F.softplus(-target - self.b)
        return self.weight / self.s * (self.balance * own + (1 - self.balance) * reduced)
