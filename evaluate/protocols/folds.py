"""Verification of pairs: 10-fold accuracy, and TAR at a fixed FAR."""

from dataclasses import dataclass

import numpy as np

from evaluate.protocols.embeddings import finite
from pipelines.common.errors import UserError

FOLDS = 10
FAR_TARGET = 1e-3
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
VAL_THRESHOLDS = np.arange(0, 4, 0.001)


@dataclass(frozen=True)
class VerificationResult:
    """Figures of one set of P pairs, as fractions; distances and thresholds are squared L2 distances in [0, 4]."""

    accuracy: float  # mean over the folds
    std: float  # its population standard deviation
    val: float  # validation rate (TAR) at the threshold of FAR_TARGET; NaN where the set has no impostor pairs
    val_std: float
    far: float  # the FAR really met there on the held-out folds
    threshold: float  # mean of the folds' best thresholds
    folds: np.ndarray  # (10,) accuracy of each fold
    tpr: np.ndarray  # (400,) mean over the folds at ACCURACY_THRESHOLDS
    fpr: np.ndarray  # (400,)
    distances: np.ndarray  # (P,)

    def summary(self) -> dict[str, float]:
        """The number of pairs and the single figures."""
        names = ("accuracy", "std", "val", "val_std", "far", "threshold")
        return {"pairs": len(self.distances)} | {name: getattr(self, name) for name in names}


def verify(features: np.ndarray, same: np.ndarray) -> VerificationResult:
    """The 10-fold protocol on features (2P, v, d), v views of each image, and ``same`` (P,) bool.

    Images 2i and 2i+1 are pair i. The views (original, mirrored) are summed; a zero vector stays one. Raises
    ``ValueError`` for features that are not finite.
    """
    features, same = np.asarray(features), np.asarray(same, dtype=bool)
    if features.ndim != 3 or len(features) != 2 * len(same):
        raise UserError(f"{len(same)} pairs need features (2 x {len(same)}, views, d), got {features.shape}")
    if len(same) < FOLDS:
        raise UserError(f"{len(same)} pairs are too few: the protocol needs {FOLDS} folds of at least one pair")
    embeddings = finite(features, "the features").astype(np.float64).sum(axis=1)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings /= np.where(norms == 0, 1, norms)
    distances = np.square(embeddings[::2] - embeddings[1::2]).sum(axis=1)
    # Folds in order, the first ones longer by one where P is no multiple of ten.
    fold = np.repeat(np.arange(FOLDS), [len(part) for part in np.array_split(same, FOLDS)])

    accepted, totals = _accepted(distances, same, fold, ACCURACY_THRESHOLDS)
    correct = accepted[:, 1] + totals[:, 0, None] - accepted[:, 0]  # (folds, thresholds)
    best = (correct.sum(axis=0) - correct).argmax(axis=1)
    folds = correct[np.arange(FOLDS), best] / totals.sum(axis=1)
    # A fold without pairs of a kind has rate 0 there, as is customary.
    rates = (accepted / np.maximum(totals, 1)[:, :, None]).mean(axis=0)

    val, far = _validation_rate(distances, same, fold)
    return VerificationResult(
        accuracy=float(folds.mean()),
        std=float(folds.std()),
        val=_defined(val).mean().item(),
        val_std=_defined(val).std().item(),
        far=_defined(far).mean().item(),
        threshold=float(ACCURACY_THRESHOLDS[best].mean()),
        folds=folds,
        tpr=rates[1],
        fpr=rates[0],
        distances=distances,
    )


def _accepted(
    distances: np.ndarray, same: np.ndarray, fold: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs below each threshold (folds, 2, thresholds) and in all (folds, 2); the middle axis is impostor, genuine."""
    bins = len(thresholds) + 1
    first = np.searchsorted(thresholds, distances, side="right")  # the first threshold that accepts the pair
    counts = np.bincount((fold * 2 + same) * bins + first, minlength=FOLDS * 2 * bins).reshape(FOLDS, 2, bins)
    return counts[:, :, :-1].cumsum(axis=2), counts.sum(axis=2)


def _validation_rate(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per fold: TAR and FAR at the threshold where the other nine reach FAR_TARGET; NaN where undefined."""
    accepted, totals = _accepted(distances, same, fold, VAL_THRESHOLDS)
    with np.errstate(invalid="ignore"):
        far_train = (accepted[:, 0].sum(axis=0) - accepted[:, 0]) / (totals[:, 0].sum() - totals[:, 0])[:, None]
    val, far = np.full(FOLDS, np.nan), np.full(FOLDS, np.nan)
    for k in range(FOLDS):
        if np.isnan(far_train[k]).any():
            continue
        threshold = _threshold_at(far_train[k])
        below = (distances < threshold) & (fold == k)
        for rate, kind in ((far, 0), (val, 1)):
            if totals[k, kind]:
                rate[k] = (below & (same == kind)).sum() / totals[k, kind]
    return val, far


def _threshold_at(far: np.ndarray) -> float:
    """The threshold of FAR_TARGET: from the last one that keeps it, linearly towards the next; 0 if none exceeds it."""
    if far[-1] < FAR_TARGET:
        return 0.0
    last = int(np.flatnonzero(far <= FAR_TARGET)[-1])
    if last + 1 == len(far):
        return float(VAL_THRESHOLDS[last])
    return float(np.interp(FAR_TARGET, far[last : last + 2], VAL_THRESHOLDS[last : last + 2]))


def _defined(values: np.ndarray) -> np.ndarray:
    """The values that are not NaN, or one NaN."""
    defined = values[~np.isnan(values)]
    return defined if len(defined) else np.array([np.nan])


def worst_pairs(result: VerificationResult, same: np.ndarray, count: int = 12) -> dict[str, np.ndarray]:
    """Indices of the genuine pairs farthest apart and of the impostor pairs nearest to each other."""
    genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
    return {
        "genuine": genuine[np.argsort(-result.distances[genuine], kind="stable")[:count]],
        "impostor": impostor[np.argsort(result.distances[impostor], kind="stable")[:count]],
    }
