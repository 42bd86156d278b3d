"""Resampling people: what figures would have been with others in their place.

Scores of one person's images resemble each other, so neither pairs nor images are independent, and intervals that take
them for it are too narrow. What is drawn are the *units*: people where they are known, the pairs of a set that names
nobody. Each resample draws a sign ε = ±1 for every unit.

*Rates over what belongs to one unit each* (genuine pairs, probes) weigh it by 1 + ε, nothing or twice: the
double-or-nothing bootstrap of Fogliato, Patil and Perona (2023, arXiv 2306.01198). It has the mean and the variance of
drawing units with replacement, without what repeated draws bring: a person compared with themself (Conti and Clémençon,
"Assessing Uncertainty in Similarity Scoring: Performance & Fairness in Face Recognition", 2022, arXiv 2211.07245).

*Counts of impostor pairs*, which belong to two units, weigh a pair by

    1 + √λ (ε_i + ε_j) + ε_i ε_j            (never negative)

λ = 1 is double-or-nothing again, (1 + ε_i)(1 + ε_j): right where people differ in how much they are like others, but
three times too large a variance where accepted pairs are scattered, as at small FARs. λ = 0 weighs pairs of people
without regard to what else these do. The count c over pairs of people d has, by Hoeffding's decomposition of a
U-statistic, a variance that is estimated without bias by V₁ - V₂, V₁ = Σ_i (Σ_j h_ij)², V₂ = Σ_d h_d², h the
centred counts; that of the weights above is λV₁ + V₂. So λ = 1 - 2V₂/V₁, at least 0. (Fogliato et al. make their
plug-in variance of the same two sums.)

Two models on the same data meet the same signs, so that their difference can be resampled, too.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it takes its time to import, and a training run does without
    from scipy.sparse import csr_array

RESAMPLES = 1000
_CELLS = 1 << 23  # of what is weighed at a time: some 100 MB


def draw(units: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The signs, int8 (B, u): the same wherever the same number of units is resampled."""
    return np.random.default_rng(seed).integers(0, 2, (resamples, units), dtype=np.int8) * 2 - 1


def people(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Whom each of ``count`` templates shows, int32 (count,) from 0: those that genuine pairs (G,), (G,) connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(edges, directed=False)[1]


def rates(hits: np.ndarray, unit: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Shares (B, k) of ``hits`` bool (n, k), whose rows belong to ``unit`` (n,); NaN where a resample has none."""
    units = signs.shape[1]
    totals = np.stack([np.bincount(unit, column, units) for column in hits.T.astype(float)], axis=1)
    kept = (signs > 0).astype(np.float32)
    count = kept @ np.bincount(unit, minlength=units)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (kept @ totals) / count[:, None]


def rates_above(scores: np.ndarray, unit: np.ndarray, limits: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Shares (B, k) of ``scores`` (n,), which belong to ``unit`` (n,), above each resample's own ``limits`` (B, k)."""
    order = np.argsort(-scores, kind="stable")
    place = np.searchsorted(-scores[order], -limits, side="left")
    shares = np.empty(limits.shape)
    for part in _parts(len(signs), len(scores)):
        kept = np.cumsum(signs[part][:, unit[order]] > 0, axis=1, dtype=np.int32)  # float32 counts to 2^24 alone
        kept = np.pad(kept, ((0, 0), (1, 0)))
        with np.errstate(invalid="ignore", divide="ignore"):
            shares[part] = np.take_along_axis(kept, place[part], axis=1) / kept[:, -1:]
    return np.where(np.isnan(limits), np.nan, shares)


def limits(scores: np.ndarray, unit: np.ndarray, wanted: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Thresholds (B, k) that at most ``wanted`` (B, k) of each resample's ``scores`` exceed.

    Args:
        scores: (n,), falling; may be the largest only.
        unit: whose they are, (n,).
        wanted: how many of the scores of the units that a resample keeps, each counted once. Where it has fewer, the
            least score is the limit.
        signs: (B, u), as `draw` makes them; a unit with -1 is left out.
    """
    found = np.empty(wanted.shape)
    for part in _parts(len(signs), len(scores)):
        kept = np.cumsum(signs[part][:, unit] > 0, axis=1, dtype=np.int32)
        for row, line in enumerate(kept, part.start):
            found[row] = scores[np.searchsorted(line, wanted[row] - 1e-6).clip(max=len(scores) - 1)]
    return found


def impostor_limits(
    scores: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    fars: Sequence[float],
    signs: np.ndarray,
    degree: np.ndarray | None = None,
) -> np.ndarray:
    """Thresholds (B, k) for ``fars`` (k,) among impostor ``scores`` (P,) of pairs of units ``first``, ``second`` (P,).

    The scores may be the largest only, where ``degree`` float64 (u,) tells how many pairs each unit is in. Where a
    resample needs more than there are, the least is the limit.

    Exact for the weights above, but that the dyads' term of all P pairs is left out of their number; this makes V₂ too
    large by FAR/(1 - FAR) of itself. NaN for a FAR that not one pair would reach: nothing can be said of it.

    Only pairs near the threshold are looked at in each resample; those above count by ε, their degrees and the dyads'
    quadratic form. If a resample's threshold lies outside, the window is widened.
    """
    units, resamples = signs.shape[1], len(signs)
    order = np.argsort(-scores, kind="stable")
    degree = _degrees(first, second, units) if degree is None else degree
    pairs = round(degree.sum() / 2)
    exact_signs = signs.astype(np.float32)
    found = np.full((resamples, len(fars)), np.nan)
    for column, far in enumerate(fars):
        count = round(far * pairs)
        if count < 1:
            continue
        accepted = order[:count]
        root, of_dyads, of_units = _spread(first[accepted], second[accepted], far, degree)
        target = far * (pairs + root * (exact_signs @ degree))
        width = int(6 * np.sqrt(root**2 * of_units + of_dyads)) + 16
        while True:
            above, below = max(count - width, 0), min(count + width, len(scores))
            top, window = order[:above], order[above:below]
            base = above + root * (exact_signs @ _degrees(first[top], second[top], units))
            base += ((_dyads(first[top], second[top], units) @ exact_signs.T).T * exact_signs).sum(axis=1)
            place = _reached(target - base, first[window], second[window], root, signs)
            inside = (place >= 0) & (place < len(window))
            if inside.all() or below - above == len(scores):
                break
            width *= 2
        found[:, column] = scores[window][place.clip(0, len(window) - 1)]
    return found


def impostor_rates_above(
    scores: np.ndarray, first: np.ndarray, second: np.ndarray, limits: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Shares (B,) of impostor ``scores`` (P,) of pairs of units ``first``, ``second`` (P,) above each resample's limit.

    The weights are those above, with λ from the pairs that exceed the middle one of the ``limits`` (B,); as in
    `impostor_limits` the dyads' term is left out of the number of all pairs.
    """
    if not len(scores) or np.isnan(limits).any():
        return np.full(len(limits), np.nan)
    degree = _degrees(first, second, signs.shape[1])
    accepted = scores > np.median(limits)
    root, _, _ = _spread(first[accepted], second[accepted], accepted.mean(), degree)
    total = len(scores) + root * (signs.astype(np.float32) @ degree)
    order = np.flatnonzero(scores > limits.min())
    order = order[np.argsort(-scores[order], kind="stable")]
    place = np.searchsorted(-scores[order], -limits, side="left")
    counts = np.empty(len(limits))
    for part in _parts(len(signs), len(order)):
        reached = np.cumsum(_pair_weights(first[order], second[order], root, signs[part]), axis=1, dtype=np.float64)
        counts[part] = np.take_along_axis(np.pad(reached, ((0, 0), (1, 0))), place[part, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0.5, counts / total, np.nan)


def _spread(first: np.ndarray, second: np.ndarray, far: float, degree: np.ndarray) -> tuple[float, float, float]:
    """√λ, V₂ and V₁ of accepted pairs, a share ``far`` of those in which each unit is ``degree`` (u,) times."""
    rows = _degrees(first, second, len(degree)) - far * degree
    dyads = _dyads(first, second, len(degree))
    of_dyads, of_units = (1 - far) * float(np.square(dyads.data).sum()), float(np.square(rows).sum())
    return np.sqrt(max(1 - 2 * of_dyads / max(of_units, 1e-300), 0.0)), of_dyads, of_units


def _pair_weights(first: np.ndarray, second: np.ndarray, root: float, signs: np.ndarray) -> np.ndarray:
    """Weights float32 (B, n) of pairs of units (n,), (n,)."""
    both = signs[:, first] + signs[:, second]  # 2, 0 or -2
    return np.array([2 - 2 * root, 0, 2 + 2 * root], np.float32)[(both + 2) >> 1]


def _reached(wanted: np.ndarray, first: np.ndarray, second: np.ndarray, root: float, signs: np.ndarray) -> np.ndarray:
    """Which of n pairs in order is the first whose weight makes their sum ``wanted`` (B,); n if none, -1 if no need."""
    place = np.empty(len(signs), np.int64)
    for part in _parts(len(signs), len(first)):
        reached = np.cumsum(_pair_weights(first, second, root, signs[part]), axis=1, dtype=np.float64)
        for row, line in enumerate(reached, part.start):
            place[row] = np.searchsorted(line, wanted[row] - 1e-3)
    return np.where(wanted <= 0, -1, place)


def _degrees(first: np.ndarray, second: np.ndarray, units: int) -> np.ndarray:
    """How many pairs each unit is in, float64 (u,)."""
    return np.bincount(first, minlength=units).astype(float) + np.bincount(second, minlength=units)


def _dyads(first: np.ndarray, second: np.ndarray, units: int) -> "csr_array":
    """How many pairs two units have with each other, sparse float32 (u, u), each two once."""
    from scipy.sparse import coo_array

    low, high = np.minimum(first, second), np.maximum(first, second)
    matrix = coo_array((np.ones(len(first), np.float32), (low, high)), shape=(units, units)).tocsr()
    matrix.sum_duplicates()
    return matrix


def _parts(resamples: int, width: int) -> list[slice]:
    """The resamples in parts of which each has some ``_CELLS`` weights."""
    size = max(_CELLS // max(width, 1), 1)
    return [slice(start, min(start + size, resamples)) for start in range(0, resamples, size)]
