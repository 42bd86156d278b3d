"""Spherical confidence learning: how sure a frozen encoder is of each embedding (Li et al., CVPR 2021)."""

import math

from torch import Tensor

from losses.margins.margin import BatchView, Margin

# Below this order the expansion of the Bessel function is taken at a higher one and recurred down to the order wanted.
_LEAST_ORDER = 16.0


def log_bessel(order: float, kappa: Tensor) -> Tensor:
    """log I_ν(κ) - ν·log κ for ν >= 0 and (B,) κ >= 0: finite at κ = 0, differentiable, in float64.

    The uniform expansion for large orders (Olver; DLMF 10.41.3) with its first four terms; relative error of I under
    1e-8. Without log κ the recurrence I_ν = I_{ν+2} + 2(ν+1)/κ·I_{ν+1} has no singularity: q_ν = I_{ν+1}/(κ·I_ν) obeys
    1/q_ν = 2(ν+1) + κ²·q_{ν+1} (DLMF 10.29.1).
    """
    kappa = kappa.double()
    lifts = max(0, math.ceil(_LEAST_ORDER - order))
    value = _expansion(order + lifts, kappa)
    if lifts:
        q = (_expansion(order + lifts + 1, kappa) - value).exp()
        for lower in reversed(range(lifts)):
            q = 1 / (2 * (order + lower + 1) + kappa.square() * q)
            value = value - q.log()
    return value


def _expansion(order: float, kappa: Tensor) -> Tensor:
    root = (1 + (kappa / order).square()).sqrt()
    p = 1 / root
    p2 = p * p
    u1 = p * (3 - 5 * p2) / 24
    u2 = p2 * (81 + p2 * (-462 + 385 * p2)) / 1152
    u3 = p * p2 * (30375 + p2 * (-369603 + p2 * (765765 - 425425 * p2))) / 414720
    u4 = p2 * p2 * (4465125 + p2 * (-94121676 + p2 * (349922430 + p2 * (-446185740 + 185910725 * p2)))) / 39813120
    series = 1 + (u1 + (u2 + (u3 + u4 / order) / order) / order) / order
    exponent = order * (root - (1 + root).log() - math.log(order))
    return exponent - 0.5 * math.log(2 * math.pi * order) - 0.5 * root.log() + series.log()


class SCF(Margin):
    """-κ·cos θ - (d/2 - 1)·log κ + log I_{d/2-1}(κ): the κ of a von Mises-Fisher density around the embedding.

    The embeddings that come in are κ·μ, the frozen encoder's unit vector μ times its confidence κ > 0; the model
    detaches μ. The centres stay as they are, and other classes have no part in the loss.
    """

    competitive = False

    def __init__(self) -> None:
        super().__init__(s=1.0)

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return batch.norm * cos_y

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        return log_bessel(batch.embedding_size / 2 - 1, batch.norm).to(target.dtype) - target
