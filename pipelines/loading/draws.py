"""What a random parameter of an augmentation may be: maps of the schedule's uniforms, float32 (b,), to (b, ...)."""

from collections.abc import Callable
from itertools import permutations

import numpy as np

Draw = Callable[[np.ndarray], np.ndarray]


def chance(probability: float) -> Draw:
    """True with ``probability``."""
    return lambda uniforms: uniforms < probability


def uniform(low: float, high: float) -> Draw:
    """float32 in [low, high)."""
    return lambda uniforms: np.float32(low) + np.float32(high - low) * uniforms


def log_uniform(low: float, high: float) -> Draw:
    """float32 in [low, high), its logarithm uniform.

    The power is taken in float64: in float32 its last bit depends on the processor, and pixels are counted from it.
    """
    return lambda uniforms: (low * (high / low) ** uniforms.astype(np.float64)).astype(np.float32)


def fitting_aspect(least_area: float, most: float) -> Draw:
    """Rows a column, float32 in (1 / most, most), of a rectangle that is drawn until it fits into a square.

    Its area is drawn from ``least_area`` to 1 and its aspect's logarithm x evenly, as by torchvision's
    ``RandomResizedCrop``; of the areas, those up to exp(-|x|) fit. That share is the density of x in what is left.
    """
    grid = np.linspace(0, np.log(most), 1025)
    below = 1 - np.exp(-grid) - least_area * grid

    def draw(uniforms: np.ndarray) -> np.ndarray:
        signed = 2 * uniforms.astype(np.float64) - 1
        size = np.interp(np.abs(signed) * below[-1], below, grid)
        return np.exp(np.copysign(size, signed)).astype(np.float32)

    return draw


def one_of(count: int, probability: float) -> Draw:
    """One of 0 … count - 1, int32, with ``probability`` in all, else -1."""
    return lambda uniforms: np.where(uniforms < probability, np.floor(uniforms / probability * count), -1).astype(
        np.int32
    )


def choice(*values: int) -> Draw:
    """One of the whole numbers ``values``, all equally likely, int32."""
    table = np.array(values, np.int32)
    return lambda uniforms: table[(uniforms * len(table)).astype(np.int64)]


def permutation(count: int) -> Draw:
    """The numbers 0 … count - 1 in any order, all equally likely, int32 (b, count)."""
    table = np.array(list(permutations(range(count))), np.int32)
    return lambda uniforms: table[(uniforms * len(table)).astype(np.int64)]
