import math
from fractions import Fraction

import numpy as np
import pytest

from evaluate.protocols.identification import (
    Search,
    joint,
    joint_top,
    limit_at,
    open_set,
    resampled_limits,
    search,
    tpir_at,
)
from evaluate.protocols.resampling import draw


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(seed=0, probes=120, gallery=40, d=12, twins=True):
    rng = np.random.default_rng(seed)
    entries = unit(rng.standard_normal((gallery, d)))
    if twins:  # gallery entries that are equal to the bit
        entries[5], entries[30], entries[31] = entries[20], entries[2], entries[2]
    mate = rng.integers(0, gallery, probes)
    return unit(entries[mate] + 0.45 * rng.standard_normal((probes, d))), entries, mate


def ranks(probes, gallery, mate):
    """By a stable sort of exact scores."""
    scores = np.array([[np.sum(p * g) for g in gallery] for p in probes])
    order = np.argsort(-scores, axis=1, kind="stable")
    return scores, np.array([int(np.flatnonzero(order[i] == m)[0]) if m >= 0 else -1 for i, m in enumerate(mate)])


@pytest.mark.parametrize("strangers", [False, True])
def test_search_is_a_stable_sort_of_exact_scores(strangers):
    probes, gallery, mate = make()
    mate = np.where(mate < 15, -1, mate) if strangers else mate
    found = search(probes, gallery, mate, top=300)
    scores, expected = ranks(probes, gallery, mate)
    np.testing.assert_array_equal(found.rank, expected)
    rows = np.flatnonzero(mate >= 0)
    np.testing.assert_array_equal(found.mate_score[rows], scores[rows, mate[rows]])
    scores[rows, mate[rows]] = -np.inf
    np.testing.assert_array_equal(found.best_other, scores.max(axis=1))
    np.testing.assert_array_equal(found.top_others, np.sort(scores.ravel())[::-1][:300])


def test_ties_go_to_the_first_in_the_gallery():
    gallery = np.eye(3)[[0, 0, 1]]
    probes = np.eye(3)[[0, 0]]
    np.testing.assert_array_equal(search(probes, gallery, np.array([0, 1])).rank, [0, 1])


def test_joint_follows_the_published_rule():
    probes, gallery, mate = make(1, twins=False)
    result = joint(search(probes, gallery, mate, top=joint_top(len(mate))))
    scores, rank = ranks(probes, gallery, mate)
    own = scores[np.arange(len(mate)), mate].copy()
    scores[np.arange(len(mate)), mate] = -2
    others = np.sort(scores.ravel())[::-1]
    for fpir in (0.01, 0.1):
        limit = others[math.ceil(len(mate) * fpir) - 1]
        assert result["threshold"][f"{fpir:g}"] == limit
        assert result["tpir"][f"{fpir:g}"] == np.mean(own > limit)
    for k in (1, 5, 10):
        assert result[f"rank{k}"] == np.mean(rank < k)


def test_open_set_uses_the_best_scores_of_strangers():
    probes, gallery, mate = make(2, twins=False)
    searches = []
    for known in (mate < 22, mate >= 22):
        entries = np.unique(mate[known])
        own = np.where(known, np.searchsorted(entries, mate), -1)
        searches.append(search(probes, gallery[entries], own))
        found = searches[-1]
        scores = probes @ gallery[entries].T
        bests = np.sort(scores[~known].max(axis=1))[::-1]
        for fpir in (0.05, 0.5, 1.0):
            limit = bests[max(int(len(bests) * fpir) - 1, 0)]
            right = [scores[i].argmax() == own[i] and scores[i, own[i]] > limit for i in np.flatnonzero(known)]
            assert tpir_at(found, fpir) == pytest.approx(np.mean(right))
    result = open_set(searches, ["g1", "g2"])
    assert result["tpir"]["0.1"] == pytest.approx(np.mean([tpir_at(found, 0.1) for found in searches]))
    hits = sum(int((found.rank[found.mated] < 5).sum()) for found in searches)
    assert result["rank5"] == hits / len(probes)


def test_open_set_needs_strangers():
    probes, gallery, mate = make(3)
    with pytest.raises(ValueError, match="with and without a mate"):
        tpir_at(search(probes, gallery, mate), 0.1)


@pytest.mark.parametrize("probes, fpir", [(19, 0.1), (100, 0.29), (199, 0.01), (57, 0.1), (200, 1.0)])
def test_resampled_thresholds_follow_the_rule_of_the_threshold(probes, fpir):
    """Each is that of the probes of the people who are left, as sorting them in plain Python finds it."""
    rng = np.random.default_rng(probes)
    best, person = rng.uniform(0, 1, probes), rng.integers(0, 15, probes)
    person[0] = 14
    found = Search(  # and a mated probe of one person more
        np.r_[np.full(probes, -1), 0], np.r_[np.full(probes, np.nan), 0.9], np.r_[best, 0.0], np.zeros(0), np.zeros(0)
    )

    def threshold(scores):
        allowed = max(int(Fraction(str(fpir)) * len(scores)), 1)
        return sorted(scores, reverse=True)[allowed - 1]

    assert limit_at(found, fpir) == threshold(best.tolist())
    signs = np.r_[draw(16, 300), -np.ones((1, 16), np.int8)]
    limits = resampled_limits(found, np.r_[person, 15], signs, [fpir, 0.5])[:, 0]
    for limit, sign in zip(limits, signs[:-1].tolist()):
        assert limit == threshold([score for score, who in zip(best.tolist(), person.tolist()) if sign[who] > 0])
    assert limits[-1] == best.max()  # where nobody is left
