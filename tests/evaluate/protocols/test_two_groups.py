"""The threshold between strangers and the same person, against drawn scores whose groups are known."""

import numpy as np
import pytest

from evaluate.protocols.two_groups import two_groups


@pytest.mark.parametrize(("share", "distance"), [(0.03, 0.5), (0.2, 0.3), (0.5, 0.3)])
def test_the_threshold_makes_the_fewest_mistakes(share, distance):
    generator = np.random.default_rng(0)
    wrong = generator.random(40_000) < share
    scores = np.where(wrong, 0.0, distance) + generator.normal(0, 0.1, 40_000)
    cut = two_groups(scores, generator.normal(0, 0.1, 10_000))
    assert cut.share == pytest.approx(share, rel=0.1)
    assert cut.recall == pytest.approx((scores[wrong] < cut.threshold).mean(), abs=0.02)

    def mistakes(threshold):
        return ((scores < threshold) != wrong).sum()

    fewest = min(map(mistakes, np.linspace(-0.5, 1, 301)))
    assert mistakes(cut.threshold) <= 1.1 * fewest + 20


def test_without_strangers_nothing_lies_below():
    generator = np.random.default_rng(0)
    scores, strangers = generator.uniform(0.6, 0.9, 500), generator.normal(0, 0.1, 500)
    cut = two_groups(scores, strangers)
    assert (scores < cut.threshold).sum() <= 1 and cut.share < 0.005


def test_with_strangers_alone_all_lie_below():
    scores = np.random.default_rng(0).normal(0, 0.1, 1000)
    cut = two_groups(scores, scores)
    assert (scores < cut.threshold).mean() > 0.99 and cut.share == pytest.approx(1, abs=0.02)


def test_a_threshold_that_is_given_is_told_of():
    cut = two_groups(np.array([0.0, 0.2, 0.8, 0.9]), np.array([-0.1, 0.1, 0.3]), threshold=0.2)
    assert (cut.threshold, cut.recall) == (0.2, pytest.approx(2 / 3))
