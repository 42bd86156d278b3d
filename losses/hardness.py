"""How hard each sample of a batch is: the Gaussian-uniform mixture of TopoFR's structure damage estimation (SDE).

Dan et al., "TopoFR" (NeurIPS 2024), sec. 3.2; the mixture follows Lathuilière et al., "DeepGUM" (ECCV 2018).
"""

import math

import torch
from torch import Tensor

_ITERATIONS = 64


@torch.no_grad()
def gaussian_posterior(values: Tensor, valid: Tensor) -> Tensor:
    """Posterior probability that a value belongs to the zero-mean Gaussian of a Gaussian-uniform mixture.

    Expectation maximisation on the standardised values, on their device and without waiting for it: the number of
    iterations is fixed, and an estimate that has converged is left alone.

    Args:
        values: (B,) float.
        valid: (B,) bool, the values that count.

    Returns:
        (B,) float64 in [0, 1], finite for constant, tiny and extreme batches too.
    """
    x, one = values.double(), valid.double()
    count = one.sum().clamp(min=1)
    x = (x - (x * one).sum() / count) * one
    deviation = ((x * x).sum() / count).sqrt()
    x = x / torch.where(deviation > 10 * torch.finfo(torch.float64).eps, deviation, 1.0)

    weight, level, likelihood = x.new_tensor(0.1), x.new_tensor(0.2), x.new_tensor(0.0)
    variance = (x * x).sum() / count
    posterior = torch.zeros_like(x)
    done = torch.zeros((), dtype=torch.bool, device=x.device)
    for _ in range(_ITERATIONS):
        spread = variance + 1e-3
        density = torch.exp(-x * x / (2 * spread)) / (2 * math.pi * spread).sqrt()
        fresh = density * weight / (density * weight + (1 - weight) * level) * one
        total = fresh.sum().clamp(min=torch.finfo(torch.float64).tiny)
        new_variance = (fresh * x * x).sum() / total
        new_weight = (total / count).clamp(max=0.5)
        outside = (one - fresh) / (1 - new_weight + 1e-10)
        first, second = (outside * x).sum() / total, (outside * x * x).sum() / total
        width = 3 * second - first * first
        new_level = torch.where(width.abs() < 1e-3, 1e-3, 1 / (2 * width.clamp(min=0).sqrt() + 1e-10))
        new_likelihood = ((new_weight * density + (1 - new_weight) * new_level) * one).sum()

        def unless_done(old: Tensor, new: Tensor, done: Tensor = done) -> Tensor:
            return torch.where(done, old, new)

        posterior, variance = unless_done(posterior, fresh), unless_done(variance, new_variance)
        weight, level = unless_done(weight, new_weight), unless_done(level, new_level)
        done = done | ((new_likelihood - likelihood).abs() < 1e-10)
        likelihood = new_likelihood
    return posterior


def hardness_weights(entropy: Tensor, row_losses: Tensor, valid: Tensor) -> Tensor:
    """Weights w1·w2 of a batch's samples: (2 - γ) of their entropies' posterior, times 1 - p_y.

    The entropies get alternating signs, which makes their distribution one around zero. The published code rounds p_y
    to an integer, so that its w2 is always 1; this is the paper's.

    Args:
        entropy: (B,) of the softmax with the margin.
        row_losses: (B,) cross-entropies, -log p_y.
        valid: (B,) bool.
    """
    signs = torch.ones_like(entropy)
    signs[0 : len(entropy) // 2 * 2 : 2] = -1
    w1 = 2 - gaussian_posterior(entropy.detach() * signs, valid)
    w2 = 1 - torch.exp(-row_losses.detach())
    return w1.to(w2.dtype) * w2
