"""TAR at fixed FARs, with the order of the scores exact where an operating point lies.

TAR (true accept rate) is the share of genuine pairs at or above a threshold, FAR (false accept rate) that of impostor
pairs. The points are those of scikit-learn's ``roc_curve`` as the published IJB scripts use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.common.errors import UserError

RULES = ("nearest", "at_most")


@dataclass(frozen=True)
class OperatingPoint:
    """Where a curve stands for a wanted FAR; all accepted scores are at or above ``threshold`` (inf: none is)."""

    tar: float
    far: float
    threshold: float


class Roc:
    """The curve of P scores, float32 and each within ``error`` of its float64 ``exact(indices)``, and ``same`` bool."""

    def __init__(
        self, scores: np.ndarray, same: np.ndarray, exact: Callable[[np.ndarray], np.ndarray], error: float
    ) -> None:
        self._scores, self._same, self._exact, self._error = scores, same, exact, error
        self.genuine = np.sort(scores[same])
        self.impostor = np.sort(scores[~same])
        if not len(self.genuine) or not len(self.impostor):
            raise UserError(
                f"a ROC needs genuine and impostor pairs, here are {len(self.genuine)} and {len(self.impostor)}"
            )

    def at(self, far: float, rule: str = "nearest") -> OperatingPoint:
        """The operating point for ``far``.

        ``nearest``: the kept point of ``roc_curve`` with the FAR nearest to it, the larger on ties.
        ``at_most``: the largest TAR whose FAR does not exceed it.
        """
        assert rule in RULES
        target = far * len(self.impostor)  # false accepts that are wanted
        width = 2048
        while True:  # until the window of exact points holds the answer, whatever lies outside it
            points = self._points(round(target), width)
            if rule == "at_most":
                chosen = np.flatnonzero(points.false / len(self.impostor) <= far)
                found = chosen[-1] if len(chosen) else None
                # The next point exceeds the FAR, so all later ones do.
                settled = found is not None and (found + 1 < len(points.false) or points.ends)
            else:
                kept = np.flatnonzero(points.kept)
                distance = np.abs(points.false[kept] / len(self.impostor) - far)
                found = kept[len(kept) - 1 - distance[::-1].argmin()] if len(kept) else None
                # Both ends of the window are farther from the target than what was found, so all outside is, too. The
                # ends' own `kept`, which points outside may decide, does not matter then.
                settled = found is not None and (
                    (points.starts or points.false[0] < target - abs(points.false[found] - target))
                    and (points.ends or points.false[-1] > target + abs(points.false[found] - target))
                )
            if settled:
                return OperatingPoint(
                    float(points.true[found] / len(self.genuine)),
                    float(points.false[found] / len(self.impostor)),
                    float(points.threshold[found]),
                )
            width *= 8

    def _points(self, rank: int, width: int) -> "_Points":
        """The exact points around the ``rank``-th largest impostor score, ``width`` impostors to either side.

        Exact scores are computed of the pairs whose float32 scores lie in [low, high]. A pair above ``high`` has an
        exact score above high - error, one below ``low`` an exact score below low + error. So at a threshold strictly
        between those two limits all pairs above the window are accepted and none below it, and the counts are exact.
        Points at other thresholds are left out.
        """
        count = len(self.impostor)
        above, below = rank - width, rank + width
        high = self.impostor[count - above] if above > 0 else np.inf
        low = self.impostor[count - below] if below <= count else -np.inf
        inside = np.flatnonzero((self._scores >= low) & (self._scores <= high))
        scores = self._exact(inside)
        order = np.argsort(-scores, kind="stable")
        scores, same = scores[order], self._same[inside[order]]
        true = len(self.genuine) - np.searchsorted(self.genuine, high, side="right") + np.cumsum(same)
        false = count - np.searchsorted(self.impostor, high, side="right") + np.cumsum(~same)
        # Equal scores are one point, that of the last of them.
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True]) if len(scores) else np.empty(0, int)
        true, false, scores = true[last], false[last], scores[last]
        # roc_curve drops a point in the middle of three that lie equally spaced on a line.
        kept = np.ones(len(scores), bool)
        if len(scores) > 2:
            kept[1:-1] = (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0)
        starts, ends = bool(high == np.inf), bool(low == -np.inf)
        sure = (starts | (scores < high - self._error)) & (ends | (scores > low + self._error))
        if not starts:
            sure[:1] = False  # whether the first and last are kept depends on points outside
        if not ends:
            sure[-1:] = False
        true, false, scores, kept = true[sure], false[sure], scores[sure], kept[sure]
        if starts:
            true, false = np.r_[0, true], np.r_[0, false]
            scores, kept = np.r_[np.inf, scores], np.r_[True, kept]
        return _Points(true, false, scores, kept, starts, ends)

    def curve(self, fars: np.ndarray) -> np.ndarray:
        """TAR (n,) at each FAR (n,), from the float32 scores: for drawing."""
        return tar_at(self.genuine, self.impostor, len(self.impostor), fars)[0]


@dataclass(frozen=True)
class _Points:
    """Consecutive points of the curve by falling threshold; ``starts``, ``ends``: nothing lies before, after them."""

    true: np.ndarray  # int64 (n,) genuine pairs at or above the threshold
    false: np.ndarray  # int64 (n,) impostor pairs there
    threshold: np.ndarray  # float64 (n,)
    kept: np.ndarray  # bool (n,) whether roc_curve keeps the point
    starts: bool
    ends: bool


def allowed(rate: float | np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """The most of ``count`` that are no larger a share than ``rate``, int64; (…) as the two are broadcast.

    A product that is a whole number but for its rounding, as .01 · 300 is, is that number.
    """
    return np.floor(np.multiply(rate, count) * (1 + 1e-12)).astype(np.int64)


def tar_at(
    genuine: np.ndarray, impostor: np.ndarray, impostors: int, fars: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """TAR (n,) where the FAR does not exceed ``fars`` (n,), and the impostor score that must be exceeded.

    ``genuine`` and ``impostor`` are sorted scores; the latter may be the largest only of ``impostors``.
    """
    above = allowed(np.asarray(fars), impostors)
    known = np.r_[-np.inf, impostor]
    assert (above < len(known)).all() or len(impostor) == impostors, "too few impostor scores for this FAR"
    limit = known[np.maximum(len(known) - 1 - above, 0)]
    return 1 - np.searchsorted(genuine, limit, side="right") / len(genuine), limit
