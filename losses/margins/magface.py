"""MagFace: a margin that grows with the embedding's norm, which stands for the quality of the image."""

import torch
from torch import Tensor

from losses.margins.combined import add_angle
from losses.margins.margin import BatchView, Margin
from losses.margins.options import AngleMargin, Cosine, Factor, Norm, Scale
from pipelines.common.errors import UserError


class Magnitude:
    """MagFace's margin m(a) and regulariser g(a) of an embedding's norm a (Meng et al., CVPR 2021, eq. 4 and 6).

    m grows linearly from ``l_m`` to ``u_m`` as a goes from ``l_a`` to ``u_a``; norms outside
    that range count as its ends.
    """

    def __init__(self, l_a: float, u_a: float, l_m: float, u_m: float, lambda_g: float) -> None:
        if l_a >= u_a:
            raise UserError(f"norms must rise from l_a to u_a, not from {l_a} to {u_a}")
        self.l_a, self.u_a = l_a, u_a
        self.l_m, self.slope = l_m, (u_m - l_m) / (u_a - l_a)
        self.lambda_g = lambda_g

    def margin(self, norm: Tensor) -> Tensor:
        """(B,) norms → (B,) margins, differentiable."""
        return self.l_m + self.slope * (norm.clamp(self.l_a, self.u_a) - self.l_a)

    def penalty(self, norm: Tensor) -> Tensor:
        """(B,) norms → (B,) λ·g(a), which falls towards ``u_a``; differentiable."""
        norm = norm.clamp(self.l_a, self.u_a)
        return self.lambda_g * (norm / self.u_a**2 + 1 / norm)


class MagFace(Margin):
    """s·cos(θ + m(a)) and λ·g(a) (Meng et al., CVPR 2021). The gradient also flows through the norm a.

    Args:
        easy_margin: no margin past a right angle, as in the published code, where the formula has one everywhere.
    """

    trains_scale = True

    def __init__(
        self,
        s: Scale = 64.0,
        l_a: Norm = 10.0,
        u_a: Norm = 110.0,
        l_m: AngleMargin = 0.45,
        u_m: AngleMargin = 0.8,
        lambda_g: Factor = 35.0,
        easy_margin: bool = False,
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        self.easy_margin = easy_margin
        self.magnitude = Magnitude(l_a, u_a, l_m, u_m, lambda_g)

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        cos = cos_y.clamp(-1, 1)
        moved = add_angle(cos, self.magnitude.margin(batch.norm))
        return self.s * (torch.where(cos > 0, moved, cos) if self.easy_margin else moved)

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        return super().loss(target, reduced, batch) + self.magnitude.penalty(batch.norm)
