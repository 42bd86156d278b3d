from itertools import combinations, permutations

import numpy as np
import pytest

from evaluate.protocols import groups
from evaluate.protocols.resampling import draw, impostor_limits, impostor_rates_above

FMR, FNMR = np.array([0.001, 0.004, 0.002]), np.array([0.02, 0.03, 0.07])


def test_measures_are_their_formulas():
    def gini(x):
        return len(x) / (len(x) - 1) * sum(abs(a - b) for a, b in permutations(x, 2)) / (2 * len(x) ** 2 * np.mean(x))

    def apart(x):
        return max(abs(a - b) for a, b in combinations(x, 2))

    assert groups.gini(FMR) == pytest.approx(gini(FMR))
    assert groups.garbe(FMR, FNMR) == pytest.approx(0.5 * gini(FMR) + 0.5 * gini(FNMR))
    assert groups.discrepancy(FMR, FNMR) == pytest.approx(1 - (0.5 * apart(FMR) + 0.5 * apart(FNMR)))
    assert groups.max_over_geometric_mean(FMR) == pytest.approx(0.004 / (0.001 * 0.004 * 0.002) ** (1 / 3))
    assert groups.worst_accuracy(FMR, FNMR) == pytest.approx(1 - (0.002 + 0.07) / 2)


def test_measures_at_the_ends():
    equal, one = np.full(4, 0.1), np.array([0, 0, 0, 0.1])
    assert groups.gini(equal) == pytest.approx(0) and groups.gini(one) == pytest.approx(1)
    assert groups.gini(np.zeros(4)) == 0 and groups.discrepancy(equal, equal) == 1
    assert groups.sum_of_differences(equal) == pytest.approx(0) and groups.sum_of_differences(one) == pytest.approx(6)
    assert groups.max_over_geometric_mean(equal) == pytest.approx(1)
    assert np.isnan(groups.max_over_geometric_mean(one))


SPEECH = {  # word error rates of five groups of speakers, and |1 - E_g / mean| as Ležovičová published them
    "NoAug": (
        [44.54652876432241, 23.90868111094954, 29.653309079235996, 57.00788935424175, 62.94694455836844],
        [0.02, 0.45, 0.32, 0.31, 0.44],
    ),
    "Whisper": (
        [40.29675261231722, 25.50674786332286, 34.130090241614646, 53.83669300202205, 58.14347805320724],
        [0.05, 0.40, 0.19, 0.27, 0.37],
    ),
}


@pytest.mark.parametrize("rates, terms", SPEECH.values(), ids=SPEECH)
def test_sged_is_the_sum_of_published_terms(rates, terms):
    rates, equal = np.array(rates) / 100, np.full(5, 0.02)
    rounding = len(terms) * 0.005
    assert groups.sum_of_differences(rates) == pytest.approx(sum(terms), abs=rounding)
    for fmr, fnmr in ((equal, rates), (rates, equal)):
        assert groups.sged(fmr, fnmr) == pytest.approx(sum(terms) / 2, abs=rounding / 2)
    several = groups.sum_of_differences(np.stack([rates, 3 * rates, np.zeros(5)]))
    assert several == pytest.approx([several[0], several[0], 0])


def test_rates_are_of_pairs_within_a_group():
    rng = np.random.default_rng(0)
    scores, same, group = rng.standard_normal(500), rng.random(500) < 0.4, rng.integers(-1, 3, 500)
    fmr, fnmr = groups.group_rates(scores, same, group, 3, 0.3)
    for number in range(3):
        assert fmr[number] == pytest.approx((scores[(group == number) & ~same] >= 0.3).mean())
        assert fnmr[number] == pytest.approx((scores[(group == number) & same] < 0.3).mean())


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_impostor_rates_are_those_of_all_weights_written_out(spread):
    rng = np.random.default_rng(3)
    first, second = (np.repeat(who, 2) for who in np.nonzero(~np.eye(25, dtype=bool)))
    alike = rng.normal(0, spread, 25)
    scores = alike[first] + alike[second] + rng.standard_normal(len(first))
    signs = draw(25, 60)
    limits = np.quantile(scores, rng.uniform(0.9, 0.97, 60))
    found = impostor_rates_above(scores, first, second, limits, signs)
    accepted = scores > np.median(limits)
    degree = np.bincount(np.r_[first, second], minlength=25)
    share = accepted.mean()
    rows = np.bincount(np.r_[first[accepted], second[accepted]], minlength=25) - share * degree
    dyads = np.zeros((25, 25))
    np.add.at(dyads, (np.minimum(first, second)[accepted], np.maximum(first, second)[accepted]), 1)
    root = np.sqrt(max(1 - 2 * (1 - share) * (dyads**2).sum() / (rows**2).sum(), 0))
    for row, (sign, limit) in enumerate(zip(signs.astype(float), limits)):
        weight = 1 + root * (sign[first] + sign[second]) + sign[first] * sign[second]
        assert found[row] == pytest.approx(
            weight[scores > limit].sum() / (len(scores) + root * degree @ sign), rel=1e-5
        )


def test_pairs_of_nobody_are_weighed_nothing_or_twice():
    scores, signs = np.random.default_rng(4).standard_normal(300), draw(600, 40)
    first, second = 2 * np.arange(300), 2 * np.arange(300) + 1
    limits = impostor_limits(scores, first, second, [0.1], signs)[:, 0]
    found = impostor_rates_above(scores, first, second, limits, signs)
    kept = signs[:, first] == signs[:, second]
    expected = [2 * (scores[row] > limit).sum() / 300 for row, limit in zip(kept, limits)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def simulated(seed, factor, people=60, each=8):
    """Chance levels and measures of three groups, of which the last has ``factor`` times the errors."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(3), people * each * 2)
    same = np.tile([True, False], len(group) // 2)
    who = np.repeat(np.arange(3 * people), each * 2)
    other = np.where(same, who, (who // people) * people + rng.integers(0, people, len(who)))
    wrong = rng.random(len(group)) < 0.05 * np.where(group == 2, factor, 1)
    scores = np.where(same != wrong, 1.0, -1.0) + 1e-3 * rng.random(len(group))
    signs, limits = draw(3 * people, 200), np.zeros(200)
    rates = groups.group_rates(scores, same, group, 3, 0.0)
    anew = groups.resampled_group_rates(scores, same, group, 3, (who, other), limits, signs)
    units = np.full(3, people)
    shares = np.full(3, people * each)
    chance = groups.by_chance(rates, anew, (units, units), (shares, shares), draws=500)
    return {name: float(measure(*rates)) for name, measure in groups.MEASURES.items()}, chance


def test_equal_groups_seldom_exceed_chance_and_unequal_ones_do():
    equal = [simulated(seed, 1.0) for seed in range(60)]
    for name in ("garbe", "sged", "fmr_max_over_geometric_mean"):
        exceeded = sum(found[name] > chance[name] for found, chance in equal)
        assert exceeded <= 8  # 3 are expected; 9 or more are of a chance below 1 %
    assert sum(found["fdr"] < chance["fdr"] for found, chance in equal) <= 8
    found, chance = simulated(0, 4.0)
    assert found["garbe"] > chance["garbe"] and found["fdr"] < chance["fdr"]
    assert found["sged"] > chance["sged"]
    assert found["worst_accuracy"] < chance["worst_accuracy"]
