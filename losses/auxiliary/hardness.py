"""How hard each sample of a batch is: the Gaussian-uniform mixture of TopoFR's structure damage estimation (SDE).

Dan et al., "TopoFR" (NeurIPS 2024), sec. 3.2; the mixture follows Lathuilière et al., "DeepGUM" (ECCV 2018).
"""

import numpy as np
import torch
from torch import Tensor

from pipelines.common.transfers import HostCopy, to_device

_MOST_ITERATIONS = 64


@np.errstate(invalid="ignore")
def gaussian_posterior(values: np.ndarray) -> np.ndarray:
    """Posterior probability that a value belongs to the zero-mean Gaussian of a Gaussian-uniform mixture.

    Expectation maximisation on the standardised values, until the likelihood rests.

    Args:
        values: (n,) float64.

    Returns:
        (n,) float64 in [0, 1], finite for constant, tiny and extreme batches too; NaN if one value is not finite.
    """
    count, tiny = max(1, len(values)), np.finfo(np.float64).tiny
    x = values - values.sum() / count
    deviation = np.sqrt((x * x).sum() / count)
    if deviation > 10 * np.finfo(np.float64).eps:
        x = x / deviation

    weight, level, likelihood = 0.1, 0.2, 0.0
    squares = x * x
    variance = squares.sum() / count
    for _ in range(_MOST_ITERATIONS):
        spread = variance + 1e-3
        density = np.exp(-squares / (2 * spread)) / np.sqrt(2 * np.pi * spread)
        posterior = density * weight / (density * weight + (1 - weight) * level)
        total = max(posterior.sum(), tiny)
        variance = (posterior * squares).sum() / total
        weight = min(total / count, 0.5)
        outside = (1 - posterior) / (1 - weight + 1e-10)
        first, second = (outside * x).sum() / total, (outside * squares).sum() / total
        width = 3 * second - first * first
        level = 1e-3 if abs(width) < 1e-3 else 1 / (2 * np.sqrt(max(width, 0)) + 1e-10)
        before, likelihood = likelihood, (weight * density + (1 - weight) * level).sum()
        if abs(likelihood - before) < 1e-10:
            break
    return posterior


def hardness_weights(entropy: Tensor, probability: Tensor | None, valid: Tensor) -> Tensor:
    """Weights of a batch's samples: w1 = 2 - γ of their entropies' posterior, times w2 = 1 - p_y.

    The entropies get alternating signs, which makes their distribution one around zero. The mixture is fitted on the
    host, which waits for the device once: for so few numbers that is faster than some thousand of its launches.

    Args:
        entropy: (B,) of the softmax with the margin.
        probability: (B,) p_y, of the own class; None for w1 alone.
        valid: (B,) bool.
    """
    signs = torch.ones_like(entropy)
    signs[0 : len(entropy) // 2 * 2 : 2] = -1
    signed, counted = HostCopy(torch.stack([(entropy.detach() * signs).double(), valid.double()])).result().numpy()
    counts = counted > 0
    posterior = np.zeros_like(signed)
    posterior[counts] = gaussian_posterior(signed[counts])
    w1 = 2 - to_device(torch.from_numpy(posterior).to(entropy.dtype), entropy.device)
    return w1 if probability is None else w1 * (1 - probability)
