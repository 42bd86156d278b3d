"""95 % intervals of figures that were resampled, and of the difference of two.

A rate's interval is Wilson's with an effective number of trials, n = p(1 - p)/v, where v is the variance of the
resampled rates: so it is never empty, and it is skewed as the rate's distribution is near 0 and 1, where percentiles of
few mistakes are too narrow (Fogliato, Patil and Perona, "Confidence intervals for error rates in 1:1 matching tasks",
2023, arXiv 2306.01198). At exactly 0 or 1, or where no resample differs, n is the number of units that were resampled.
The difference of two models has neither end near, so its interval is the normal one, with the variance of the
differences in the same resamples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # the normal distribution's quantile at 0.975
LEAST_ABOVE = 10  # strangers' scores above a threshold that has an interval


def wilson(rate: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a ``rate`` in so many ``trials``, which need not be a whole number."""
    centre = rate + Z**2 / (2 * trials)
    half = Z * math.sqrt(max(rate * (1 - rate), 0.0) / trials + (Z / (2 * trials)) ** 2)
    low, high = ((centre + sign * half) / (1 + Z**2 / trials) for sign in (-1, 1))
    return min(max(low, 0.0), rate), max(min(high, 1.0), rate)


def interval(rate: float, resampled: np.ndarray, units: int) -> tuple[float, float] | None:
    """The interval of a ``rate`` with its ``resampled`` values (B,) and the number of ``units`` that were resampled.

    None where the rate is not defined, or not in the resamples.
    """
    trials = effective_trials(rate, resampled, units)
    return None if math.isnan(trials) else wilson(rate, trials)


def effective_trials(rate: float, resampled: np.ndarray, units: int) -> float:
    """How many independent trials would tell as much of a ``rate``; NaN where `interval` is None."""
    variance = _variance(resampled)
    if not (math.isfinite(rate) and math.isfinite(variance)) or units < 2:
        return math.nan
    variance *= units / (units - 1)
    certain = rate * (1 - rate) <= 0 or variance <= 0
    return units if certain else rate * (1 - rate) / variance


@dataclass(frozen=True)
class Difference:
    """How much larger one rate is than another; ``noise``: the interval holds 0."""

    value: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        return self.low <= 0 <= self.high


def difference(rates: tuple[float, float], resampled: tuple[np.ndarray, np.ndarray], units: int) -> Difference | None:
    """The first of two rates minus the second, from the same resamples (B,) of both; None where it is not defined."""
    value = rates[0] - rates[1]
    variance = _variance(resampled[0].astype(np.float64) - resampled[1])
    if not (math.isfinite(value) and math.isfinite(variance)) or units < 2:
        return None
    half = Z * math.sqrt(variance * units / (units - 1))
    return Difference(value, value - half, value + half)


def threshold_intervals(
    threshold: Mapping[str, float], limits: np.ndarray, above: Mapping[str, int]
) -> dict[str, list[float] | None]:
    """95 % intervals of thresholds by rate, from their resampled values (B, k): the percentiles.

    None where fewer than ``LEAST_ABOVE`` strangers' scores lie ``above`` a threshold: resamples know no scores but
    those there are, and the true threshold often lies beyond them.
    """
    return {
        rate: [min(value, float(low)), max(value, float(high))] if above[rate] >= LEAST_ABOVE else None
        for (rate, value), column in zip(threshold.items(), limits.T)
        for low, high in [np.percentile(column, [2.5, 97.5])]
    }


def _variance(values: np.ndarray) -> float:
    """Of the values that are defined; NaN where fewer than nine in ten are."""
    defined = values[np.isfinite(values)].astype(np.float64)
    return float(defined.var()) if len(defined) > 0.9 * len(values) else math.nan
