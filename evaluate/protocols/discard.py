"""Error versus discard: how many genuine pairs are still refused when those of the lowest quality are left out.

The threshold is chosen once, on all pairs, and stays; a pair's quality is the lower of its two images'; pairs of equal
quality go together. So does the code of Schlett et al. ("Considerations on the Evaluation of Biometric Quality
Assessment Algorithms", 2023; dasec/quality-assessment-evaluation, ``edc.py``), which also takes the area for that under
the steps. The idea is Grother and Tabassi's ("Performance of Biometric Quality Measures", 2007).
"""

from dataclasses import dataclass

import numpy as np

from evaluate.protocols.roc import allowed


@dataclass(frozen=True)
class DiscardCurve:
    """Steps: ``fnmr`` (k,) holds from the share ``discarded`` (k,) of the pairs up to the next; the last is (1, 0)."""

    discarded: np.ndarray
    fnmr: np.ndarray

    def at(self, shares: np.ndarray) -> np.ndarray:
        """FNMR (n,) where these ``shares`` (n,) of the pairs are left out."""
        return self.fnmr[np.searchsorted(self.discarded, shares, side="right") - 1]

    def area(self, limit: float) -> float:
        """Area below the curve from 0 to ``limit``; over ``limit``, the mean FNMR there."""
        return float((self.fnmr[:-1] * np.diff(np.minimum(self.discarded, limit))).sum())


def threshold_at(impostor: np.ndarray, fmr: float) -> float:
    """The least threshold of which no more than ``fmr`` of the ``impostor`` scores (n,) are at or above it."""
    refused = np.r_[-np.inf, np.sort(impostor)][len(impostor) - allowed(fmr, len(impostor))]
    return float(np.nextafter(refused, np.inf))


def discard_curve(refused: np.ndarray, quality: np.ndarray) -> DiscardCurve:
    """The curve of genuine pairs with ``refused`` bool (n,) and the pairs' ``quality`` (n,)."""
    order, starts = _steps(quality)
    wrong = np.cumsum(refused[order][::-1])[::-1]  # from each pair on
    return DiscardCurve(np.r_[starts / len(order), 1.0], np.r_[wrong[starts] / (len(order) - starts), 0.0])


def resampled_discard(
    scores: np.ndarray,
    quality: np.ndarray,
    unit: np.ndarray,
    limits: np.ndarray,
    signs: np.ndarray,
    shares: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Curves (B, k) at ``shares`` (k,) with the units of genuine pairs resampled, and areas (B,) up to ``limit``.

    Args:
        scores: of genuine pairs, (n,).
        quality: of the pairs, (n,).
        unit: whose they are, (n,).
        limits: (B,), the highest scores that are refused.
        signs: (B, u), see `evaluate.protocols.resampling`.
        shares, limit: where the curves are read, and up to where their areas go.
    """
    order, starts = _steps(quality)
    scores, unit = scores[order], unit[order]
    curves, areas = np.full((len(signs), len(shares)), np.nan), np.full(len(signs), np.nan)
    for row, (sign, highest) in enumerate(zip(signs, limits)):
        kept = (sign > 0)[unit]
        if not kept.any() or np.isnan(highest):
            continue
        left = np.cumsum(kept[::-1])[::-1][starts]
        wrong = np.cumsum((kept & (scores <= highest))[::-1])[::-1][starts]
        curve = DiscardCurve(np.r_[1 - left / left[0], 1.0], np.r_[wrong / np.maximum(left, 1), 0.0])
        curves[row], areas[row] = curve.at(shares), curve.area(limit)
    return curves, areas


def _steps(quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (n,) by rising quality, and the places (k,) in that order where a new quality begins."""
    order = np.argsort(quality, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(quality[order]) != 0])
