"""The threshold that parts two groups of scores, strangers' and those of one person, of which strangers' are known.

Efron, "Microarrays, Empirical Bayes and the Two-Groups Model" (2008): of all scores a share π is distributed as the
strangers' F₀ is, which can be measured, the rest anyhow. So F(t) is πF₀(t) or more for every t, and π at most the least
F(t)/F₀(t), which it comes near to where the rest lies higher (Blanchard, Lee and Scott, "Semi-Supervised Novelty
Detection", 2010); one is added to the counts, so that few wrong scores are not taken for none. The threshold t is then
the one with the fewest mistakes, those above t that are strangers and those below that are not: the least of
π(1 - F₀(t)) + F(t) - πF₀(t).
"""

from dataclasses import dataclass

import numpy as np

_PARTS = np.arange(0.05, 1, 0.01)  # of the strangers' scores, where all are counted; of fewer, chance would decide


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it is expected to do.

    Attributes:
        threshold: strangers lie below.
        share: of strangers among all scores.
        recall: the part of strangers that lie below.
    """

    threshold: float
    share: float
    recall: float


def two_groups(scores: np.ndarray, strangers: np.ndarray, threshold: float | None = None) -> Cut:
    """The best threshold for ``scores`` (n,), as the scores of some ``strangers`` (m,) tell, or what to expect of one
    that is given."""
    scores, strangers = np.sort(scores), np.sort(strangers)
    counts = np.searchsorted(scores, np.quantile(strangers, _PARTS)) + 1
    share = min(float((counts / _PARTS).min()) / len(scores), 1.0)
    if threshold is None:  # in the middle between two scores, as any number there makes as many mistakes
        steps = np.sort(np.concatenate([scores, strangers]))
        candidates = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2])
    else:
        candidates = np.array([threshold])
    below = np.searchsorted(scores, candidates) / len(scores)
    recall = np.searchsorted(strangers, candidates) / len(strangers)
    best = int(np.argmax(2 * share * recall - below))
    return Cut(float(candidates[best]), share, float(recall[best]))
