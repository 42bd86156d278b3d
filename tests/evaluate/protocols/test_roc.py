from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from evaluate.protocols.roc import Roc, allowed, tar_at

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def published(scores, same, far):
    """The rule as the published scripts write it down."""
    false, true, _ = roc_curve(same, scores)
    false, true = np.flipud(false), np.flipud(true)
    _, place = min(zip(abs(false - far), range(len(false))))
    return true[place], false[place]


def make(seed, impostors, genuine=400, ties=True):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(0.45, 0.2, genuine), rng.normal(0.0, 0.13, impostors)])
    same = np.arange(len(scores)) < genuine
    if ties:  # between impostors, and between genuine and impostors
        scores[-50:] = scores[-100:-50]
        scores[-120:-100] = scores[:20]
        scores[40:50] = scores[50:60]
    order = rng.permutation(len(scores))
    return scores[order], same[order]


def roc(scores, same, error=3e-5, seed=0):
    """As the protocols see it: float32 scores with an error, and exact ones on demand."""
    noise = np.random.default_rng(seed).uniform(-0.9 * error, 0.9 * error, len(scores))
    return Roc((scores + noise).astype(np.float32), same, lambda i: scores[i], error)


@pytest.mark.parametrize("count", [1, 99, 100, 300, 10**6, 15_658_489])
def test_how_many_are_a_share_of_so_many(count):
    """Of decimal shares, exactly: in floating point .29 · 100 is less than 29."""
    rates = [f"{k}e-{digits}" for digits in (2, 4, 6) for k in (1, 29, 57)]
    wanted = [int(Fraction(rate) * count) for rate in rates]
    assert allowed(np.array(rates, float), count).tolist() == wanted == [allowed(float(x), count) for x in rates]


@pytest.mark.parametrize("impostors", [300, 5_000, 200_000])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("far", FARS)
def test_nearest_point_is_that_of_roc_curve_in_spite_of_float32(impostors, seed, far):
    scores, same = make(seed, impostors)
    point = roc(scores, same).at(far)
    assert (point.tar, point.far) == pytest.approx(published(scores, same, far), abs=1e-12)


@pytest.mark.parametrize("far", [1e-2, 1e-1, 0.3])
def test_errors_wider_than_the_first_window(far):
    scores, same = make(7, 100_000)
    point = roc(scores, same, error=0.02).at(far)
    assert (point.tar, point.far) == pytest.approx(published(scores, same, far), abs=1e-12)


@pytest.mark.parametrize("far", FARS)
def test_at_most_is_the_largest_tar_that_keeps_the_far(far):
    scores, same = make(3, 100_000)
    point = roc(scores, same).at(far, "at_most")
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    assert point.far <= far
    assert point.tar == pytest.approx(true[false <= far].max(), abs=1e-12)


def test_thresholds_accept_what_they_say():
    scores, same = make(4, 50_000)
    point = roc(scores, same).at(1e-3)
    accepted = scores >= point.threshold
    assert accepted[same].mean() == point.tar and accepted[~same].mean() == point.far


def test_the_larger_of_two_equally_near_points():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    same = np.array([True, False, True, False])
    assert roc(scores, same, error=1e-6).at(0.25).far == 0.5  # 0 and 0.5 are equally near


def test_all_scores_equal():
    same = np.arange(1000) < 10
    assert (roc(np.full(1000, 0.5), same).at(1e-4).tar, published(np.full(1000, 0.5), same, 1e-4)[0]) == (0, 0)


def test_needs_both_kinds():
    with pytest.raises(ValueError, match="genuine and impostor"):
        roc(np.zeros(5), np.ones(5, bool))


def test_tar_at_from_the_largest_impostors_alone():
    scores, same = make(5, 20_000, ties=False)
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])
    fars = np.array([1e-4, 1e-3, 5e-3])
    whole = tar_at(genuine, impostor, len(impostor), fars)
    top = tar_at(genuine, impostor[-200:], len(impostor), fars)
    np.testing.assert_array_equal(whole, top)
    for far, tar in zip(fars, whole[0]):
        false, true, _ = roc_curve(same, scores, drop_intermediate=False)
        assert tar == pytest.approx(true[false <= far].max())
