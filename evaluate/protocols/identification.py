"""1:N identification: rank-k in a closed set, and true positive identification rate (TPIR) at fixed FPIRs.

Two definitions are in use. ``joint`` is that of the published IJB tables: both galleries as one, and a threshold that
as many non-mated scores reach as the false positive rate allows among the probes. ``open_set`` is that of the IJB-C
protocol (Maze et al. 2018) and of NIST's FRVT: in each gallery the best scores of the probes without a mate set the
threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.protocols.ranges import ranges
from evaluate.protocols.resampling import limits, rates, rates_above
from evaluate.protocols.roc import allowed
from evaluate.protocols.scores import Largest, blocks, error_bound, exact
from pipelines.common.errors import UserError

JOINT_FPIRS = (0.01, 0.1)
OPEN_SET_FPIRS = (0.0001, 0.001, 0.01, 0.1, 1.0)
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Search:
    """What Q probes found in a gallery. ``rank`` counts from 0; probes without a mate have rank -1 and score NaN."""

    rank: np.ndarray  # int64 (Q,) gallery entries before the mate, ties in gallery order
    mate_score: np.ndarray  # float64 (Q,)
    best_other: np.ndarray  # float64 (Q,) the best score of an entry that is no mate
    top_others: np.ndarray  # float64 (k,), falling: the largest non-mated scores of all probes
    top_probes: np.ndarray  # int64 (k,) the probe of each

    @property
    def mated(self) -> np.ndarray:
        return self.rank >= 0


def search(probes: np.ndarray, gallery: np.ndarray, mate: np.ndarray, top: int = 1) -> Search:
    """Compare unit vectors (Q, d) with a gallery (G, d); ``mate`` (Q,) is the row of each probe's mate or -1.

    All figures are those of exact scores. ``top`` non-mated scores are returned in ``top_others``.

    A float32 score s has its exact one in s ± error. So an entry with s above the mate's exact score + error comes
    before the mate, one with s below it - error behind it, and only those between are computed exactly. Likewise a
    row's best exact score belongs to an entry whose s is no more than two errors below the row's largest s.
    """
    if len(gallery) < 2:
        raise UserError("a gallery needs at least two templates")
    error = error_bound(probes.shape[1])
    mated = np.flatnonzero(mate >= 0)
    mate_score = np.full(len(probes), np.nan)
    mate_score[mated] = exact(probes, gallery, mated, mate[mated])
    rank = np.where(mate >= 0, 0, -1).astype(np.int64)
    best_other = np.empty(len(probes))
    largest = Largest(top, slack=2 * error)
    for part, scores in blocks(probes, gallery):
        first = part.start
        own = mate[part]
        with_mate = np.flatnonzero(own >= 0)
        scores[with_mate, own[with_mate]] = -np.inf  # the mate itself is no entry before it, and no other's score
        largest.add(scores, first * len(gallery))

        row, column = np.nonzero(scores >= scores.max(axis=1, keepdims=True) - 2 * error)
        best = np.full(len(scores), -np.inf)
        np.maximum.at(best, row, exact(probes, gallery, row + first, column))
        best_other[part] = best

        target = mate_score[part][with_mate, None]
        above = scores[with_mate] > (target + error).astype(np.float32)
        near = (scores[with_mate] >= (target - error).astype(np.float32)) & ~above
        rank[with_mate + first] += above.sum(axis=1)
        row, column = np.nonzero(near)
        row = with_mate[row]
        score, target = exact(probes, gallery, row + first, column), mate_score[row + first]
        before = (score > target) | ((score == target) & (column < own[row]))
        np.add.at(rank, row[before] + first, 1)
    probe, column = np.divmod(largest.held()[1], len(gallery))
    top_others = exact(probes, gallery, probe, column)
    order = np.argsort(-top_others, kind="stable")[:top]
    return Search(rank, mate_score, best_other, top_others[order], probe[order])


def mates(probe_subject: np.ndarray, subject: np.ndarray, names: str) -> np.ndarray:
    """The row of each probe's mate in a gallery, int64 (Q,); -1 where there is none.

    Args:
        probe_subject: whom the probes show, int64 (Q,).
        subject: whom the gallery shows, int64 (G,), each once; else a ``UserError`` tells so of ``names``.
    """
    order = np.argsort(subject)
    if (np.diff(subject[order]) == 0).any():
        raise UserError(f"{names} must hold one template a subject")
    place = np.searchsorted(subject[order], probe_subject).clip(max=len(order) - 1)
    return np.where(subject[order][place] == probe_subject, order[place], -1)


def open_mates(probe_subject: np.ndarray, subject: np.ndarray, names: str) -> np.ndarray:
    """`mates` in a gallery whose open-set figures are asked for: ``UserError`` where it cannot have them."""
    found = mates(probe_subject, subject, names)
    mated = int((found >= 0).sum())
    if len(subject) < 2 or not 0 < mated < len(found):
        raise UserError(
            f"{names} has {len(subject)} templates, and a mate of {mated} of {len(found)} probes: it needs two at "
            "least, and some probes with a mate and some without; do the lists belong together?"
        )
    return found


def best_mates(probes: np.ndarray, gallery: np.ndarray, probe_person: np.ndarray, person: np.ndarray) -> np.ndarray:
    """The row of each probe's most similar mate, int64 (Q,), where people have several in the gallery.

    Args:
        probes: unit vectors float64 (Q, d).
        gallery: unit vectors float64 (G, d).
        probe_person: whom the probes show, (Q,); each has a mate.
        person: whom the gallery shows, (G,).

    Equal scores go by the gallery's order, on every machine alike.
    """
    order = np.argsort(person, kind="stable")
    starts, ends = (np.searchsorted(person[order], probe_person, side=side) for side in ("left", "right"))
    row, place = ranges(starts, ends)
    column = order[place]
    scores = exact(probes, gallery, row, column)
    first = np.cumsum(ends - starts) - (ends - starts)  # of each probe
    return column[np.lexsort((column, -scores, row))[first]]


def joint_top(probes: int) -> int:
    """How many non-mated scores ``joint`` and its resamples need."""
    return 4 * math.ceil(probes * max(JOINT_FPIRS))


def joint(found: Search) -> dict:
    """Closed-set figures of a search with ``joint_top`` scores in the union of the galleries: all probes are mated."""
    wanted = {fpir: math.ceil(len(found.rank) * fpir) for fpir in JOINT_FPIRS}
    thresholds = {fpir: found.top_others[min(count, len(found.top_others)) - 1] for fpir, count in wanted.items()}
    return {
        **rank_rates(found.rank),
        "tpir": {f"{fpir:g}": float((found.mate_score > limit).mean()) for fpir, limit in thresholds.items()},
        "threshold": {f"{fpir:g}": float(limit) for fpir, limit in thresholds.items()},
        "cmc": cmc(found.rank),
    }


def open_set(searches: Sequence[Search], names: Sequence[str]) -> dict:
    """Open-set figures of one search a gallery: ranks over all mated probes, TPIR per gallery and their mean."""
    rank = np.concatenate([found.rank[found.mated] for found in searches])
    tpir = {name: {f"{x:g}": tpir_at(found, x) for x in OPEN_SET_FPIRS} for name, found in zip(names, searches)}
    fpirs = np.geomspace(1e-4, 1, 81)
    return {
        **rank_rates(rank),
        "tpir": {x: float(np.mean([tpir[name][x] for name in names])) for x in tpir[names[0]]},
        "galleries": {
            name: {**rank_rates(found.rank[found.mated]), "tpir": tpir[name]} for name, found in zip(names, searches)
        },
        "cmc": cmc(rank),
        "det": {
            "fpir": fpirs.tolist(),
            "fnir": [1 - float(np.mean([tpir_at(found, x) for found in searches])) for x in fpirs],
        },
    }


def resampled_joint(found: Search, subject: np.ndarray, signs: np.ndarray) -> dict[str, np.ndarray]:
    """What ``joint`` gives, ``rank1`` … and TPIR by FPIR, (B,) each, with the probes' subjects (Q,) resampled.

    The gallery stays as it is, as a part of the protocol. ``signs`` (B, u) are of the subjects, as
    `evaluate.protocols.resampling` draws them.
    """
    count = (signs > 0) @ np.bincount(subject, minlength=signs.shape[1])
    wanted = np.outer(count, JOINT_FPIRS)
    limit = limits(found.top_others, subject[found.top_probes], wanted, signs)
    tpir = rates_above(found.mate_score, subject, limit, signs)
    return resampled_ranks(found.rank, subject, signs) | _by_rate(JOINT_FPIRS, tpir)


def resampled_open_set(
    searches: Sequence[Search], subject: np.ndarray, signs: np.ndarray, fpirs: Sequence[float] = OPEN_SET_FPIRS
) -> dict[str, np.ndarray]:
    """What ``open_set`` gives as means of the galleries, as ``resampled_joint``; probes without a mate count, too."""
    ranks = np.concatenate([found.rank[found.mated] for found in searches])
    subjects = np.concatenate([subject[found.mated] for found in searches])
    tpirs = []
    for found in searches:
        limit = resampled_limits(found, subject, signs, fpirs)
        score = np.where(found.rank == 0, found.mate_score, -np.inf)[found.mated]
        tpirs.append(rates_above(score, subject[found.mated], limit, signs))
    return resampled_ranks(ranks, subjects, signs) | _by_rate(fpirs, np.mean(tpirs, axis=0))


def resampled_limits(found: Search, subject: np.ndarray, signs: np.ndarray, fpirs: Sequence[float]) -> np.ndarray:
    """The thresholds (B, k) of ``limit_at`` with the subjects (Q,) of the probes without a mate resampled."""
    others = np.flatnonzero(~found.mated)[np.argsort(-found.best_other[~found.mated], kind="stable")]
    count = (signs > 0) @ np.bincount(subject[others], minlength=signs.shape[1])
    wanted = _accepted(np.array(fpirs), count[:, None])
    wanted = np.where(count[:, None] > 0, wanted, 0)  # where nobody is left, the highest score of all is the limit
    return limits(found.best_other[others], subject[others], wanted, signs)


def rank_rates(rank: np.ndarray) -> dict[str, float]:
    """``rank1`` …: the shares of ranks (n,), those of mated probes, that are among the first k."""
    return {f"rank{k}": float((rank < k).mean()) for k in RANKS}


def resampled_ranks(rank: np.ndarray, subject: np.ndarray, signs: np.ndarray) -> dict[str, np.ndarray]:
    """`rank_rates` (B,) of ranks (n,) with their probes' subjects (n,) resampled."""
    shares = rates(rank[:, None] < np.array(RANKS), subject, signs)
    return {f"rank{k}": column for k, column in zip(RANKS, shares.T)}


def _by_rate(fpirs: Sequence[float], tpir: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{fpir:g}": column for fpir, column in zip(fpirs, tpir.T)}


def _accepted(fpir: float | np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """How many of ``count`` best scores reach the threshold: not more than ``fpir`` of them, but one at least."""
    return np.maximum(allowed(fpir, count), 1)


def limit_at(found: Search, fpir: float) -> float:
    """The n * fpir-th largest best score of the n probes without a mate, at least the largest; to be exceeded."""
    others = np.sort(found.best_other[~found.mated])[::-1]
    if not len(others) or not found.mated.any():
        raise UserError("the open-set figures need probes with and without a mate in each gallery")
    return float(others[_accepted(fpir, len(others)) - 1])


def tpir_at(found: Search, fpir: float) -> float:
    """Share of mated probes whose mate comes first and above the threshold ``limit_at`` the ``fpir``."""
    limit, mated = limit_at(found, fpir), found.mated
    return float(((found.rank[mated] == 0) & (found.mate_score[mated] > limit)).mean())


def cmc(rank: np.ndarray, length: int = 50) -> list[float]:
    """Cumulative match characteristic: the share of mates among the first 1, 2, ... ``length`` entries."""
    return [float((rank < k).mean()) for k in range(1, length + 1)]
