import numpy as np
import pytest
from scipy.stats import binomtest

from evaluate.protocols.intervals import LEAST_ABOVE, difference, interval, threshold_intervals, wilson
from evaluate.protocols.resampling import draw, impostor_limits


@pytest.mark.parametrize("hits, trials", [(0, 20), (1, 20), (13, 20), (20, 20), (5967, 6000)])
def test_wilson_is_scipys(hits, trials):
    expected = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson(hits / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_interval_has_the_trials_that_its_variance_tells():
    rate, trials, units = 0.9, 400, 10**6
    resampled = rate + np.sqrt(rate * (1 - rate) / trials) * np.tile([-1.0, 1.0], 50)
    assert interval(rate, resampled, units) == pytest.approx(wilson(rate, trials), rel=1e-5)
    assert interval(rate, resampled, 10) == pytest.approx(wilson(rate, 0.9 * trials))  # ten units tell n / (n - 1) less


def test_a_rate_that_never_differs_is_known_as_well_as_its_units_are_many():
    assert interval(1.0, np.ones(100), 30) == wilson(1.0, 30)
    assert interval(0.5, np.full(100, 0.5), 30) == wilson(0.5, 30)


@pytest.mark.parametrize(
    "rate, resampled, units",
    [(np.nan, np.ones(9), 5), (0.5, np.full(9, np.nan), 5), (0.5, np.r_[0.4, 0.6, np.nan], 5), (0.5, np.ones(9), 1)],
)
def test_what_is_not_defined_has_no_interval(rate, resampled, units):
    assert interval(rate, resampled, units) is None
    assert difference((rate, 0.5), (resampled, resampled + 0.0), units) is None


def test_a_difference_is_sharper_in_pairs_and_tells_noise():
    rng = np.random.default_rng(0)
    common = 0.02 * rng.standard_normal(1000)
    first, second = 0.91 + common, 0.90 + common + 0.001 * rng.standard_normal(1000)
    paired = difference((0.91, 0.90), (first, second), 10**6)
    apart = difference((0.91, 0.90), (first, rng.permutation(second)), 10**6)
    assert paired.value == pytest.approx(0.01)
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * 0.001, rel=0.1)
    assert not paired.noise and apart.noise
    equal = difference((0.9, 0.9), (first, first), 50)
    assert (equal.value, equal.low, equal.high, equal.noise) == (0, 0, 0, True)


@pytest.mark.parametrize("above, most", [(1, None), (LEAST_ABOVE - 1, None), (LEAST_ABOVE, 0.07)])
def test_the_upper_end_of_a_thresholds_interval_is_safe_or_there_is_none(above, most):
    """How often the true threshold lies beyond it, of pairs of people; in a third of cases if one pair is above it."""
    first, second = np.triu_indices(40, 1)
    far, beyond = above / len(first), []
    for seed in range(200):
        scores = np.random.default_rng(seed).random(len(first))
        found = impostor_limits(scores, first, second, [far], draw(40, 100, seed))
        bounds = threshold_intervals({"x": np.sort(scores)[::-1][above]}, found, {"x": above})["x"]
        assert (bounds is None) == (most is None)
        beyond.append(bounds and bounds[1] < 1 - far)
    assert most is None or np.mean(beyond) < most
