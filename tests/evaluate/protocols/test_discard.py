import numpy as np
import pytest

from evaluate.protocols.discard import discard_curve, resampled_discard, threshold_at
from evaluate.protocols.resampling import draw

# Forty pairs, qualities with ties, and what dasec/quality-assessment-evaluation (edc.py) makes of them at 0.25.
FIRST = [7, 3, 1, 5, 3, 5, 6, 4, 2, 0, 1, 0, 5, 5, 2, 0, 0, 1, 2, 2, 3, 0, 2, 4, 1, 0, 6, 1, 6, 4, 6, 2, 4, 5, 1, 6]
FIRST += [6, 2, 5, 1]
SECOND = [5, 0, 6, 2, 6, 3, 2, 2, 7, 6, 6, 5, 4, 0, 5, 3, 4, 2, 6, 0, 5, 6, 1, 3, 5, 6, 6, 1, 2, 0, 1, 3, 5, 5, 2, 7, 6]
SECOND += [0, 7, 6]
SCORES = [0.08, 0.39, 0.3, 0.41, 0.18, 1.0, 0.51, -0.06, 0.45, -0.19, 0.58, 0.17, 0.75, 0.15, 0.89, -0.05, -0.07, -0.35]
SCORES += [0.6, 0.48, 0.45, 0.03, 0.15, 0.47, 0.65, 0.34, 0.5, 0.49, 0.42, 0.71, 0.64, 0.04, 0.94, 0.37, 0.97, 0.27]
SCORES += [0.81, 0.41, 0.21, 0.62]


def pairs():
    return np.array(SCORES), np.minimum(FIRST, SECOND)


def test_is_the_published_code():
    scores, quality = pairs()
    curve = discard_curve(scores < 0.25, quality)
    np.testing.assert_allclose(curve.discarded, [0, 0.275, 0.5, 0.7, 0.8, 0.85, 0.925, 1], atol=1e-12)
    fnmr = [0.325, 0.2413793103448276, 0.25, 0.25, 0.25, 0.3333333333333333, 0, 0]
    np.testing.assert_allclose(curve.fnmr, fnmr, atol=1e-12)
    areas = [0.0325, 0.065, 0.0954094827586207, 0.25618534482758626]
    np.testing.assert_allclose([curve.area(limit) for limit in (0.1, 0.2, 0.3, 1)], areas, atol=1e-12)
    np.testing.assert_array_equal(curve.at(np.array([0, 0.27, 0.275, 0.6, 1])), curve.fnmr[[0, 0, 1, 2, 7]])


def test_one_quality_for_all_leaves_nothing_out():
    curve = discard_curve(np.arange(10) < 3, np.ones(10))
    assert curve.discarded.tolist() == [0, 1] and curve.fnmr.tolist() == [0.3, 0]
    assert curve.area(0.2) == pytest.approx(0.06)


def test_no_more_than_the_fmr_lie_at_the_threshold():
    impostor = np.array([0.1, 0.5, 0.5, 0.9])
    for fmr, accepted in ((0.1, 0), (0.25, 1), (0.5, 1), (0.75, 3), (1, 4)):
        threshold = threshold_at(impostor, fmr)
        assert (impostor >= threshold).sum() == accepted
        assert accepted == 4 or (impostor >= np.nextafter(threshold, -1)).sum() > fmr * 4  # no lower one does


def test_resamples_are_curves_of_the_pairs_that_stay():
    scores, quality = pairs()
    unit, signs = np.arange(40) // 3, draw(14, 50)
    limits, shares = np.linspace(0, 0.5, 50), np.linspace(0, 0.5, 11)
    curves, areas = resampled_discard(scores, quality, unit, limits, signs, shares, 0.3)
    for row, (sign, limit) in enumerate(zip(signs, limits)):
        kept = sign[unit] > 0
        curve = discard_curve(scores[kept] <= limit, quality[kept])
        assert areas[row] == pytest.approx(curve.area(0.3))
        np.testing.assert_allclose(curves[row], curve.at(shares + 1e-12), atol=1e-12)
