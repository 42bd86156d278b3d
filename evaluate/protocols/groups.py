"""Errors of groups of people at one threshold for all, and how far apart they lie.

FMR (false match rate) is the share of a group's impostor pairs at or above the threshold, FNMR (false non-match rate)
that of its genuine pairs below it. A measure takes the rates of g groups on the last axis, (…, g), and is NaN where it
is not defined:

- *max over geometric mean* of either rate, as NIST reports it ("Face Recognition Vendor Test Part 8: Summarizing
  Demographic Differentials", NISTIR 8429): 1 if all are equal. Where a group has no error there is no such number.
- *FDR*, fairness discrepancy rate: 1 - (α max|ΔFMR| + (1 - α) max|ΔFNMR|), 1 if all are equal (de Freitas Pereira and
  Marcel, "Fairness in Biometrics", 2020, arXiv 2011.02395).
- *GARBE*: α G(FMR) + (1 - α) G(FNMR), 0 if all are equal, with the Gini coefficient
  G(x) = n/(n - 1) · Σ_ij |x_i - x_j| / (2 n² x̄) (Howard et al., "Evaluating Proposed Fairness Models for Face
  Recognition Algorithms", 2022, arXiv 2203.05051).
- *SGED*, sum of group error differences: α S(FMR) + (1 - α) S(FNMR) with S(x) = Σ_i |1 - x_i / x̄|, 0 if all are equal
  (Elobaid et al., "Sum of Group Error Differences: A Critical Examination of Bias Evaluation in Biometric Verification
  and a Dual-Metric Measure", 2024, arXiv 2404.15385). S is known at second hand, by what Ležovičová ("How to measure
  bias in automatic speech recognition systems?", TU Delft, 2024) makes of error rates of speech. That the two are
  joined by α is GARBE's way, not known to be the paper's.
- *worst accuracy*: the least 1 - (FMR + FNMR)/2 of a group.

α is ½. Rates of few pairs differ even where people are treated alike, and all of these measures take such noise for
unfairness: `by_chance` says how much of it is to be expected.
"""

from collections.abc import Callable

import numpy as np

from evaluate.protocols.intervals import effective_trials
from evaluate.protocols.resampling import impostor_rates_above, rates_above

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # FMR and FNMR (…, g) → (…)


def max_over_geometric_mean(rates: np.ndarray) -> np.ndarray:
    """Of rates (…, g): 1 or more, NaN where one is 0."""
    least = rates.min(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(least > 0, rates.max(axis=-1) / np.exp(np.log(rates).mean(axis=-1)), np.nan)


def gini(rates: np.ndarray) -> np.ndarray:
    """Of rates (…, g): from 0 where they are equal, to 1 where all but one are 0; 0 where all are."""
    count = rates.shape[-1]
    apart = np.abs(rates[..., :, None] - rates[..., None, :]).sum(axis=(-2, -1))
    total = 2 * count * (count - 1) * rates.mean(axis=-1)
    return apart / np.where(total > 0, total, 1)


def discrepancy(fmr: np.ndarray, fnmr: np.ndarray) -> np.ndarray:
    """FDR."""
    return 1 - (np.ptp(fmr, axis=-1) + np.ptp(fnmr, axis=-1)) / 2


def garbe(fmr: np.ndarray, fnmr: np.ndarray) -> np.ndarray:
    """GARBE."""
    return (gini(fmr) + gini(fnmr)) / 2


def sum_of_differences(rates: np.ndarray) -> np.ndarray:
    """S of rates (…, g): from 0 where they are equal, to 2 (g - 1) where all but one are 0; 0 where all are."""
    mean = rates.mean(axis=-1, keepdims=True)
    return np.abs(mean - rates).sum(axis=-1) / np.where(mean > 0, mean, 1)[..., 0]


def sged(fmr: np.ndarray, fnmr: np.ndarray) -> np.ndarray:
    """SGED."""
    return (sum_of_differences(fmr) + sum_of_differences(fnmr)) / 2


def worst_accuracy(fmr: np.ndarray, fnmr: np.ndarray) -> np.ndarray:
    return 1 - (fmr + fnmr).max(axis=-1) / 2


MEASURES: dict[str, Measure] = {
    "fmr_max_over_geometric_mean": lambda fmr, fnmr: max_over_geometric_mean(fmr),
    "fnmr_max_over_geometric_mean": lambda fmr, fnmr: max_over_geometric_mean(fnmr),
    "fdr": discrepancy,
    "garbe": garbe,
    "sged": sged,
    "worst_accuracy": worst_accuracy,
}
SMALLER_IS_WORSE = ("fdr", "worst_accuracy")


def group_rates(
    scores: np.ndarray, same: np.ndarray, group: np.ndarray, groups: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """FMR and FNMR (g,) at a ``threshold`` of pairs with scores (P,), ``same`` bool (P,) and ``group`` (P,).

    A pair belongs to the group of both its people, or to none, -1.
    """
    inside = group >= 0
    kind = group[inside] * 2 + same[inside]
    total = np.bincount(kind, minlength=2 * groups).reshape(groups, 2)
    accepted = np.bincount(kind, scores[inside] >= threshold, minlength=2 * groups).reshape(groups, 2)
    with np.errstate(invalid="ignore"):
        return accepted[:, 0] / total[:, 0], 1 - accepted[:, 1] / total[:, 1]


def resampled_group_rates(
    scores: np.ndarray,
    same: np.ndarray,
    group: np.ndarray,
    groups: int,
    people: tuple[np.ndarray, np.ndarray],
    limits: np.ndarray,
    signs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """FMR and FNMR (B, g) with ``people``, those of each pair (P,), (P,), resampled by ``signs`` (B, u).

    A group's people are weighed as all are, so each group is resampled within itself. ``limits`` (B,) are the
    resamples' own thresholds, which scores must exceed.
    """
    first, second = people
    found = np.full((2, len(signs), groups), np.nan)
    for number in range(groups):
        impostor, genuine = (np.flatnonzero((group == number) & (same == kind)) for kind in (False, True))
        found[0, :, number] = impostor_rates_above(scores[impostor], first[impostor], second[impostor], limits, signs)
        found[1, :, number] = 1 - rates_above(scores[genuine], first[genuine], limits[:, None], signs)[:, 0]
    return found[0], found[1]


def by_chance(
    rates: tuple[np.ndarray, np.ndarray],
    resampled: tuple[np.ndarray, np.ndarray],
    units: tuple[np.ndarray, np.ndarray],
    shares: tuple[np.ndarray, np.ndarray],
    draws: int = 4000,
) -> dict[str, float]:
    """Of each measure the value that 1 in 20 sets of equal groups would exceed (or, of some, fall below).

    Each group's number of independent trials is that of its rate's interval; errors are drawn at the rate of all
    groups together. Small groups and people who are in many pairs thus count for what they tell. The idea of comparing
    with groups that are alike is Schuckers et al.'s ("Statistical Methods for Assessing Differences in False Non-Match
    Rates Across Demographic Groups", 2022, arXiv 2208.10948).

    Args:
        rates: FMR and FNMR, (g,) each.
        resampled: both, (B, g).
        units: how many people each group has pairs of, of either kind, (g,).
        shares: how many pairs each group has of either kind, (g,), by which the groups' rates are joined.
    """
    generator = np.random.default_rng(0)
    drawn = []
    for values, anew, count, share in zip(rates, resampled, units, shares):
        joined = float((values * share).sum() / share.sum())
        trials = np.array([effective_trials(*each) for each in zip(values.tolist(), anew.T, count.tolist())])
        # What cannot be resampled, for lack of people, tells next to nothing.
        trials = np.where(np.isnan(trials), 1, np.minimum(trials, share))
        whole = np.maximum(np.rint(trials), 1).astype(np.int64)
        drawn.append(generator.binomial(whole, joined, (draws, len(whole))) / whole)
    found = {}
    for name, measure in MEASURES.items():
        values = measure(drawn[0], drawn[1])
        worse = -np.inf if name in SMALLER_IS_WORSE else np.inf
        values = np.where(np.isnan(values), worse, values)  # a group without errors is as far apart as can be
        found[name] = float(np.quantile(values, 0.05 if name in SMALLER_IS_WORSE else 0.95, method="nearest"))
    return found
