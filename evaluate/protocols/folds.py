"""Verification of pairs: 10-fold accuracy, and TAR at a fixed FAR."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.protocols.embeddings import finite, normalised
from evaluate.protocols.intervals import interval
from evaluate.protocols.resampling import limits, rates_above
from pipelines.common.errors import UserError

FOLDS = 10
FAR_TARGET = 1e-3
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
# XQLFW's own: cosine distances 0 … 2 by .001 (Knoche, Hörmann and Rigoll, "Cross-Quality LFW", 2021), twice as far when
# squared.
XQLFW_THRESHOLDS = 2 * np.arange(0, 2, 0.001)
VAL_THRESHOLDS = np.arange(0, 4, 0.001)
BAND_FARS = np.round(np.geomspace(1e-4, 10**-0.5, 8), 6)  # at which a ROC's band is known, two a decade


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
    thresholds: np.ndarray  # (t,) those among which the folds chose
    tpr: np.ndarray  # (t,) mean over the folds with such pairs at each of them
    fpr: np.ndarray  # (t,)
    distances: np.ndarray  # (P,)

    def summary(self) -> dict[str, float]:
        """The number of pairs and the single figures."""
        names = ("accuracy", "std", "val", "val_std", "far", "threshold")
        return {"pairs": len(self.distances)} | {name: getattr(self, name) for name in names}


def thresholds_of(name: str) -> np.ndarray:
    """Those (t,) by which the set of this ``name``, which folders may lead, is published."""
    return XQLFW_THRESHOLDS if "xqlfw" in Path(name).name.lower() else ACCURACY_THRESHOLDS


def verify(features: np.ndarray, same: np.ndarray, thresholds: np.ndarray = ACCURACY_THRESHOLDS) -> VerificationResult:
    """The 10-fold protocol on features (2P, v, d), v views of each image, and ``same`` (P,) bool.

    Images 2i and 2i+1 are pair i. The views (original, mirrored) are summed; a zero vector stays one. Each fold is
    judged by the one of ``thresholds`` (t,) that is the first best on the others. Raises ``ValueError`` for features
    that are not finite.
    """
    features, same = np.asarray(features), np.asarray(same, dtype=bool)
    if features.ndim != 3 or len(features) != 2 * len(same):
        raise UserError(f"{len(same)} pairs need features (2 x {len(same)}, views, d), got {features.shape}")
    if len(same) < FOLDS:
        raise UserError(f"{len(same)} pairs are too few: the protocol needs {FOLDS} folds of at least one pair")
    embeddings = normalised(finite(features, "the features").astype(np.float64).sum(axis=1))
    distances = np.square(embeddings[::2] - embeddings[1::2]).sum(axis=1)
    fold = _folds(len(same))
    accepted, totals = _accepted(distances, same, fold, thresholds)
    folds, best = _accuracy(accepted, totals)
    # Of the folds that have pairs of a kind; the custom of counting 0 for the others bends a curve down.
    having = np.maximum((totals > 0).sum(axis=0), 1)
    rates = (accepted / np.maximum(totals, 1)[:, :, None]).sum(axis=0) / having[:, None]

    val, far = _validation_rate(distances, same, fold)
    return VerificationResult(
        accuracy=float(folds.mean()),
        std=float(folds.std()),
        val=_defined(val).mean().item(),
        val_std=_defined(val).std().item(),
        far=_defined(far).mean().item(),
        threshold=float(thresholds[best].mean()),
        folds=folds,
        thresholds=thresholds,
        tpr=rates[1],
        fpr=rates[0],
        distances=distances,
    )


def _folds(pairs: int) -> np.ndarray:
    """The fold of each pair (P,): in order, the first ones longer by one where P is no multiple of ten."""
    return np.repeat(np.arange(FOLDS), [len(part) for part in np.array_split(np.arange(pairs), FOLDS)])


def _cells(distances: np.ndarray, same: np.ndarray, fold: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The cell of (folds, 2, thresholds + 1) in which each pair (P,) is counted.

    That of its fold, its kind (impostor, genuine), and the first threshold that accepts it.
    """
    first = np.searchsorted(thresholds, distances, side="right")
    return (fold * 2 + same) * (len(thresholds) + 1) + first


def _cumulated(counts: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs below each threshold (…, folds, 2, thresholds) and in all (…, folds, 2), from counts of cells (…, n)."""
    counts = counts.reshape(*counts.shape[:-1], FOLDS, 2, len(thresholds) + 1)
    return counts[..., :-1].cumsum(axis=-1), counts.sum(axis=-1)


def _accepted(
    distances: np.ndarray, same: np.ndarray, fold: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs below each threshold (folds, 2, thresholds) and in all (folds, 2); the middle axis is impostor, genuine."""
    cells = _cells(distances, same, fold, thresholds)
    return _cumulated(np.bincount(cells, minlength=FOLDS * 2 * (len(thresholds) + 1)), thresholds)


def _accuracy(accepted: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each fold's accuracy (…, folds) at the first threshold that is best on the others, whose index is (…, folds)."""
    correct = _correct(accepted, totals)
    best = (correct.sum(axis=-2, keepdims=True) - correct).argmax(axis=-1)
    return _accuracy_at(best, correct, totals), best


def _correct(accepted: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Pairs that are told right, (…, folds, thresholds)."""
    return accepted[..., 1, :] + totals[..., 0, None] - accepted[..., 0, :]


def _accuracy_at(best: np.ndarray, correct: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Each fold's accuracy (…, folds) at the thresholds with the indices ``best`` (…, folds)."""
    right = np.take_along_axis(correct, best[..., None], axis=-1)[..., 0]
    with np.errstate(invalid="ignore"):  # a fold may be without pairs in a resample
        return right / totals.sum(axis=-1)


def resampled(result: VerificationResult, same: np.ndarray, signs: np.ndarray) -> dict[str, np.ndarray]:
    """``accuracy`` and ``val`` (B,) of the set with its pairs resampled within their folds by ``signs`` (B, P).

    The sets name nobody, so a pair stands for itself; where people are in several pairs, intervals from this are
    somewhat too narrow. Every resample chooses its thresholds again, for ``val`` among VAL_THRESHOLDS. What the new
    choice changes in an accuracy counts by √½: the few pairs between two thresholds bring the noise of the set and as
    much again by their weights, of which other pairs would bring only one.
    """
    fold = _folds(len(same))
    # Of VAL_THRESHOLDS those matter that FAR_TARGET may reach: not all of twenty impostors beyond it are left out.
    impostors = np.sort(result.distances[~same])
    farthest = impostors[: int(np.ceil(FAR_TARGET * len(impostors))) + 20].max(initial=0)
    near = VAL_THRESHOLDS[: np.searchsorted(VAL_THRESHOLDS, farthest, side="right") + 1]
    _, best = _accuracy(*_accepted(result.distances, same, fold, result.thresholds))
    found: dict[str, list[np.ndarray]] = {"accuracy": [], "val": []}
    for kept in np.array_split((signs > 0).astype(np.float32), max(len(signs) // 50, 1)):
        accepted, totals = _weighed(result.distances, same, fold, result.thresholds, kept)
        anew, _ = _accuracy(accepted, totals)
        kept_best = np.broadcast_to(best, anew.shape)
        before = _accuracy_at(kept_best, _correct(accepted, totals), totals)
        found["accuracy"].append(_mean_of_defined(before + np.sqrt(0.5) * (anew - before)))
        accepted, totals = _weighed(result.distances, same, fold, near, kept)
        with np.errstate(invalid="ignore", divide="ignore"):
            rest = accepted[..., 0, :].sum(axis=1, keepdims=True) - accepted[..., 0, :]
            far = rest / (totals[..., 0].sum(axis=1, keepdims=True) - totals[..., 0])[..., None]
            last = (far <= FAR_TARGET).sum(axis=-1, keepdims=True) - 1
            tar = np.take_along_axis(accepted[..., 1, :], last, axis=-1)[..., 0] / totals[..., 1]
        found["val"].append(_mean_of_defined(np.where(np.isnan(far[..., 0]), np.nan, tar)))
    return {name: np.concatenate(values) for name, values in found.items()}


def roc_band(result: VerificationResult, same: np.ndarray, signs: np.ndarray) -> dict[float, tuple[float, float]]:
    """95 % intervals of the TAR of all pairs at those of BAND_FARS that an impostor pair reaches, by FAR.

    Pairs are resampled as in `resampled`, and every resample has its own threshold, which a share FAR of its
    impostor pairs passes.
    """
    pair = np.arange(len(same))
    impostor = pair[~same][np.argsort(result.distances[~same], kind="stable")]
    genuine = pair[same]
    fars = BAND_FARS[BAND_FARS * len(impostor) >= 1]
    if not len(fars) or not len(genuine):
        return {}

    def rates(drawn: np.ndarray) -> np.ndarray:
        wanted = (drawn[:, impostor] > 0).sum(axis=1)[:, None] * fars
        limit = limits(-result.distances[impostor], impostor, wanted, drawn)
        return rates_above(-result.distances[genuine], genuine, limit, drawn)

    (tar,), anew = rates(np.ones((1, len(same)), np.int8)), rates(signs)
    found = {float(far): interval(tar[k], anew[:, k], len(genuine)) for k, far in enumerate(fars)}
    return {far: pair for far, pair in found.items() if pair}


def _weighed(
    distances: np.ndarray, same: np.ndarray, fold: np.ndarray, thresholds: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As ``_accepted``, of pairs with ``weights`` float32 (B, P): (B, folds, 2, thresholds) and (B, folds, 2)."""
    from scipy.sparse import coo_array  # takes its time to import, and a training run does without

    cells = _cells(distances, same, fold, thresholds)
    count = FOLDS * 2 * (len(thresholds) + 1)
    place = coo_array((np.ones(len(cells), np.float32), (cells, np.arange(len(cells)))), shape=(count, len(cells)))
    return _cumulated((place.tocsr() @ weights.T).T, thresholds)


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


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not NaN."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


def worst_pairs(result: VerificationResult, same: np.ndarray, count: int = 12) -> dict[str, np.ndarray]:
    """Indices of the genuine pairs farthest apart and of the impostor pairs nearest to each other."""
    genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
    return {
        "genuine": genuine[np.argsort(-result.distances[genuine], kind="stable")[:count]],
        "impostor": impostor[np.argsort(result.distances[impostor], kind="stable")[:count]],
    }
