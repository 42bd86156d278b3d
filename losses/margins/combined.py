"""Fixed margins on the angle or the cosine of the own class: ArcFace, CosFace, their combination, SphereFace."""

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from losses.margins.margin import BatchView, Margin
from losses.margins.options import AngleFactor, AngleMargin, Cosine, CosineMargin, Gradient, Scale

# 1 - c² is kept away from zero: float32 cosines near one are 6e-8 apart, so nothing smaller is information.
_LEAST_SIN2 = 1e-7


def sine(cos: Tensor) -> Tensor:
    """sin of the angle in [0, π] whose cosine is given; finite gradient also at ±1."""
    return (1 - cos * cos).clamp(min=_LEAST_SIN2).sqrt()


def add_angle(cos: Tensor, margin: float | Tensor) -> Tensor:
    """cos(θ + m) for θ in [0, π], continued monotonically as cos θ - m·sin m once θ + m passes π.

    ArcFace (Deng et al., CVPR 2019), eq. 3, with the continuation of its reference implementation. A negative margin
    takes away from the angle and stops at θ = 0.
    """
    if not isinstance(margin, Tensor):
        margin = cos.new_full((), margin)  # made on the device, which need not be waited for
    moved = cos * torch.cos(margin) - sine(cos) * torch.sin(margin)
    past_pi = cos <= -torch.cos(margin)
    at_zero = cos >= torch.cos(margin)
    beyond = torch.where(margin >= 0, cos - margin * torch.sin(margin), cos.clamp(min=1.0))
    return torch.where(torch.where(margin >= 0, past_pi, at_zero), beyond, moved)


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, cos: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class CombinedMargin(Margin):
    """s·(cos(m1·θ + m2) - m3): SphereFace's, ArcFace's and CosFace's margins in one (ArcFace, eq. 4).

    Args:
        gradient: ``exact``, or ``straight_through`` for d target / d cos = s, as in arcface_torch since December
            2022, after its published figures.
    """

    def __init__(
        self,
        s: Scale = 64.0,
        m1: AngleFactor = 1.0,
        m2: AngleMargin = 0.3,
        m3: CosineMargin = 0.2,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, interclass_filter)
        self.m1, self.m2, self.m3, self.gradient = m1, m2, m3, gradient

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        value = cos_y.clamp(-1, 1)
        if self.m1 != 1:
            value = multiply_angle(value, self.m1, self.m2)
        elif self.m2:
            value = add_angle(value, self.m2)
        return self.s * derived(cos_y, value - self.m3, self.gradient)


def derived(cos: Tensor, value: Tensor, gradient: Gradient) -> Tensor:
    """``value`` with its own derivative, ``exact``, or ``straight_through`` with that of ``cos``."""
    return value if gradient == "exact" else _StraightThrough.apply(cos, value.detach())


def angle(cos: Tensor) -> Tensor:
    """θ in [0, π]; see ``sine``."""
    cos = cos.clamp(-1, 1)
    return torch.atan2(sine(cos), cos)


def multiply_angle(cos: Tensor, m1: float, m2: float = 0.0) -> Tensor:
    """(-1)^k cos(φ) - 2k with φ = m1·θ + m2 and k = ⌊φ/π⌋: falls all the way (SphereFace, Liu et al. 2017, eq. 7)."""
    phi = m1 * angle(cos) + m2
    k = (phi.detach() / math.pi).floor()
    return (1 - 2 * (k % 2)) * torch.cos(phi) - 2 * k
