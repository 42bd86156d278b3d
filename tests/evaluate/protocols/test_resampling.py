from statistics import NormalDist

import numpy as np
import pytest

from evaluate.protocols.folds import FOLDS, VAL_THRESHOLDS, resampled, verify
from evaluate.protocols.intervals import interval
from evaluate.protocols.resampling import draw, impostor_limits, limits, people, rates, rates_above


def crowd(seed, count=40, probes=3, spread=0.3, centre=3.0):
    """Scores of a population of normal effects: impostor scores with their two people, genuine ones with their one.

    Each person has a template in the gallery and ``probes``. A person is by N(0, spread²) more like everybody, and by
    N(0, 1/4) better known.
    """
    rng = np.random.default_rng(seed)
    alike, known = rng.normal(0, spread, count), rng.normal(0, 0.5, count)
    first, second = (np.repeat(who, probes) for who in np.nonzero(~np.eye(count, dtype=bool)))
    impostor = alike[first] + alike[second] + rng.standard_normal(len(first))
    whose = np.repeat(np.arange(count), probes)
    return impostor, first, second, centre + known[whose] + rng.standard_normal(len(whose)), whose


def true_tar(far, spread=0.3, centre=3.0):
    normal = NormalDist()
    threshold = normal.inv_cdf(1 - far) * (1 + 2 * spread**2) ** 0.5
    return 1 - normal.cdf((threshold - centre) / (1 + 0.5**2) ** 0.5)


def test_signs_are_fair_and_always_the_same():
    signs = draw(300, 2000)
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.01
    np.testing.assert_array_equal(signs, draw(300, 2000))


def test_people_are_who_genuine_pairs_connect():
    assert people(np.array([0, 1, 5]), np.array([3, 3, 4]), 7).tolist() == [0, 0, 1, 0, 2, 2, 3]


def test_rates_are_means_over_whom_a_resample_keeps():
    rng = np.random.default_rng(0)
    hits, unit, signs = rng.random((200, 2)) < 0.7, rng.integers(0, 12, 200), draw(12, 30)
    found = rates(hits, unit, signs)
    for row, sign in zip(found, signs):
        np.testing.assert_allclose(row, hits[sign[unit] > 0].mean(axis=0), rtol=1e-6)


def test_limits_and_what_lies_above_them():
    rng = np.random.default_rng(1)
    others, whose, signs = np.sort(rng.standard_normal(500))[::-1], rng.integers(0, 20, 500), draw(20, 40)
    genuine, unit = rng.normal(1, 1, 300), rng.integers(0, 20, 300)
    kept = np.array([np.bincount(whose, minlength=20)[sign > 0].sum() for sign in signs])
    found = limits(others, whose, np.outer(kept, [0.01, 0.2]), signs)
    above = rates_above(genuine, unit, found, signs)
    for row, sign in enumerate(signs):
        mine, own = others[sign[whose] > 0], genuine[sign[unit] > 0]
        for column, rate in enumerate((0.01, 0.2)):
            assert found[row, column] == mine[int(np.ceil(rate * len(mine) - 1e-6)) - 1]
            assert above[row, column] == pytest.approx((own > found[row, column]).mean(), rel=1e-6)


def test_shares_of_more_scores_than_float32_can_count():
    count = (1 << 24) + (1 << 22)
    falling = -np.arange(count, dtype=np.float32) / count
    shares = np.array([0.3, 0.5, 0.9])
    signs, unit = np.ones((1, 1), np.int8), np.zeros(count, np.int8)
    assert rates_above(falling, unit, -shares[None], signs)[0] == pytest.approx(shares, abs=1e-6)
    assert -limits(falling, unit, shares[None] * count, signs)[0] == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_impostor_limits_are_those_of_all_weights_written_out(spread):
    """Against the weights of every pair in every resample, the two sums of the variance by loops over people."""
    count = 40
    scores, first, second, _, _ = crowd(2, count, spread=spread)
    fars, signs = (1e-5, 1e-3, 0.01, 0.2), draw(count, 50)
    found = impostor_limits(scores, first, second, fars, signs)
    assert np.isnan(found[:, 0]).all()  # less than one pair
    order = np.argsort(-scores)
    for column, far in list(enumerate(fars))[1:]:
        accepted = np.zeros(len(scores))
        accepted[order[: round(far * len(scores))]] = 1
        pairs = np.zeros((count, count))
        np.add.at(pairs, (first, second), accepted)
        pairs += pairs.T
        rows = [pairs[i].sum() - far * ((first == i).sum() + (second == i).sum()) for i in range(count)]
        share = max(1 - 2 * (1 - far) * np.square(np.triu(pairs)).sum() / np.square(rows).sum(), 0)
        for row, sign in enumerate(signs.astype(float)):
            single, product = sign[first] + sign[second], sign[first] * sign[second]
            weights = 1 + np.sqrt(share) * single + product
            assert weights.min() > -1e-9
            target = far * (1 + np.sqrt(share) * single).sum()
            place = np.searchsorted(weights[order].cumsum(), target - 1e-3)
            assert found[row, column] == scores[order][place]


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_the_spread_of_a_count_is_that_of_other_people(spread):
    """Impostors above a fixed threshold: resampled within a set, and drawn anew. Either regime of the weights."""
    anew, within = [], []
    for seed in range(60):
        scores, first, second, _, _ = crowd(seed, 60, 1, spread)
        threshold = NormalDist().inv_cdf(0.99) * (1 + 2 * spread**2) ** 0.5
        far = (scores > threshold).mean()
        anew.append(far)
        # At the set's own FAR the resampled limits are normal around the threshold: their spread, in FAR.
        found = impostor_limits(scores, first, second, [far], draw(60, 200))[:, 0]
        within.append(np.std([(scores > limit).mean() for limit in found]))
    assert np.mean(within) == pytest.approx(np.std(anew), rel=0.35)


def tar_intervals(seed, fars, resamples, **options):
    scores, first, second, genuine, whose = crowd(seed, **options)
    signs = draw(whose.max() + 1, resamples, seed)
    values = rates_above(genuine, whose, impostor_limits(scores, first, second, fars, signs), signs)
    falling = np.sort(scores)[::-1]
    points = [(genuine > falling[int(far * len(scores))]).mean() for far in fars]
    return [interval(point, column, whose.max() + 1) for point, column in zip(points, values.T)]


def coverage(fars, repeats, resamples, **options):
    truth = [true_tar(far, options.get("spread", 0.3)) for far in fars]
    found = [tar_intervals(seed, fars, resamples, **options) for seed in range(repeats)]
    return [np.mean([row[k][0] <= truth[k] <= row[k][1] for row in found]) for k in range(len(fars))]


def test_intervals_hold_the_truth():
    (covered,) = coverage((0.01,), 100, 100)
    assert 0.88 <= covered <= 0.995  # 95 % ± 3 standard deviations of a hundred, and some


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_of_tar_hold_the_truth_in_95_of_100_cases(spread):
    for covered in coverage((0.001, 0.01, 0.1), 1000, 200, count=100, probes=2, spread=spread):
        assert 0.93 <= covered <= 0.97


def faces(seed, pairs=600, noise=0.9):
    """Features of pairs whose embeddings are 8 numbers: about nine of ten are told right."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    left, right, other = (rng.standard_normal((pairs, 8)) for _ in range(3))
    right = np.where(same[:, None], left + noise * other, right)
    return np.stack([left, right], axis=1).reshape(-1, 1, 8), same


def test_a_resampled_set_is_one_with_its_pairs_left_out():
    """`resampled` weighs pairs nothing or twice, which is the set of those that are kept; folds stay as they are.

    Of an accuracy, what other thresholds change counts by √½.
    """
    features, same = faces(0)
    result, signs = verify(features, same), draw(600, 5)
    found = resampled(result, same, signs)
    for row, sign in enumerate(signs):
        fold = np.repeat(np.arange(FOLDS), 60)
        rates = []
        for held in range(FOLDS):
            kept = sign > 0
            train, test = kept & (fold != held), kept & (fold == held)
            grid = np.arange(0, 4, 0.01)
            anew, before = (
                ((result.distances[test] < grid[best]) == same[test]).mean()
                for best in (
                    np.argmax([((result.distances[rows] < t) == same[rows]).sum() for t in grid])
                    for rows in (train, fold != held)
                )
            )
            rates.append(before + np.sqrt(0.5) * (anew - before))
        assert found["accuracy"][row] == pytest.approx(np.mean(rates), rel=1e-5)
        tars = []
        for held in range(FOLDS):
            rest, test = kept & ~same & (fold != held), kept & same & (fold == held)
            fars = np.array([(result.distances[rest] < t).mean() for t in VAL_THRESHOLDS])
            limit = VAL_THRESHOLDS[np.flatnonzero(fars <= 1e-3)[-1]]
            tars.append((result.distances[test] < limit).mean())
        assert found["val"][row] == pytest.approx(np.mean(tars), rel=1e-5)


@pytest.mark.slow
def test_intervals_of_accuracy_hold_the_truth_in_95_of_100_cases():
    """The truth is the accuracy at the best threshold of very many pairs, which a fold's choice comes near to."""
    truth = verify(*faces(10**6, 400_000)).accuracy
    held = []
    for seed in range(1000):
        features, same = faces(seed)
        result = verify(features, same)
        low, high = interval(result.accuracy, resampled(result, same, draw(600, 200, seed))["accuracy"], 600)
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97
