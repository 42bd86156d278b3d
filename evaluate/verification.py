"""Verification on ``.bin`` sets (LFW, CFP-FP, AgeDB-30, ...): 10-fold accuracy and validation rate at a fixed FAR.

The protocol of Huang et al., "Labeled Faces in the Wild" (2007), as FaceNet and insightface made it customary: the
embedding is the L2-normalised sum of the original's and the mirrored image's, a pair is called the same when its
squared distance lies below a threshold, and the threshold is chosen on nine folds and judged on the tenth.

``python -m evaluate.verification --help``, alone or under torchrun.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluate.arguments import PRECISIONS, add_network_options
from evaluate.embeddings import finite
from evaluate.preprocessing import input_options
from pipelines.bins import BinSet, read_bin
from pipelines.entry import run
from pipelines.files import distinct_names

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
        """The numbers worth a line in a log."""
        return {name: getattr(self, name) for name in ("accuracy", "std", "val", "val_std", "far", "threshold")}


def verify(features: np.ndarray, same: np.ndarray) -> VerificationResult:
    """The 10-fold protocol on features (2P, v, d), v views of each image, and ``same`` (P,) bool.

    Images 2i and 2i+1 are pair i. The views (original, mirrored) are summed; a zero vector stays one. Raises
    ``ValueError`` for features that are not finite.
    """
    features, same = np.asarray(features), np.asarray(same, dtype=bool)
    if features.ndim != 3 or len(features) != 2 * len(same):
        raise ValueError(f"{len(same)} pairs need features (2 x {len(same)}, views, d), got {features.shape}")
    if len(same) < FOLDS:
        raise ValueError(f"{len(same)} pairs are too few: the protocol needs {FOLDS} folds of at least one pair")
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Verification of a model on .bin sets such as LFW.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, state dict or .onnx file")
    parser.add_argument("--bins", type=Path, nargs="+", required=True, help="lfw.bin cfp_fp.bin ...")
    parser.add_argument("--output", type=Path, help="folder for results.json and pictures of the worst pairs")
    parser.add_argument("--no-flip", action="store_true", help="do not add the mirrored image's embedding")
    add_network_options(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    given = input_options(args)
    # What only a command needs stays out of the way of training, which imports `verify`.
    from evaluate.checkpoint import load_network
    from evaluate.devices import ranks
    from evaluate.embed import embed
    from evaluate.results import write_results
    from pipelines.processor import keep_freed_memory
    from pipelines.sources import MemorySource

    keep_freed_memory()
    names = distinct_names([path.with_suffix("") for path in args.bins])
    sets = {name: read_set(path) for name, path in zip(names, args.bins)}
    results, reports = {}, {}
    with ranks() as world:
        network = load_network(args.checkpoint, args.network, world.device, given)
        if world.rank == 0:
            print(f"the network takes {network.input}")
        for (name, pairs), path in zip(sets.items(), args.bins):
            features = embed(
                network.model,
                MemorySource(pairs.encoded, name=str(path)),
                device=world.device,
                batch_size=args.batch_size,
                image_size=network.input_size,
                flip=not args.no_flip,
                rank=world.rank,
                world_size=world.world_size,
                threads=args.threads,
                autocast=PRECISIONS[args.precision],
            )
            results[name] = verify(features, pairs.same)
            reports[name] = set_results(results[name], pairs.same)
            if args.output and world.rank == 0:
                reports[name]["worst"] = str(_draw_worst(results[name], pairs, args.output / f"worst_{name}.png"))
        if world.rank == 0:
            Console().print(table(results))
            if args.output:
                write_results(
                    args.output, {"name": args.name, "input": network.input, "flip": not args.no_flip, "sets": reports}
                )


def read_set(path: Path) -> BinSet:
    """A ``.bin`` set that has pairs enough for the protocol; a ``ValueError`` names the file if not."""
    pairs = read_bin(path)
    if len(pairs.same) < FOLDS:
        raise ValueError(
            f"{path} has {len(pairs.same)} pairs, too few: the protocol needs {FOLDS} folds of at least one"
        )
    return pairs


def table(results: Mapping[str, VerificationResult]) -> Table:
    """The figures of each set in percent. The FAR met is that of the held-out folds, where it may be far off."""
    out = Table("set", "pairs", "accuracy %", "TAR % at FAR 1e-3", "FAR % met", "threshold")
    for name, result in results.items():
        out.add_row(
            Text(name),  # as it is: a str would be read as markup
            str(len(result.distances)),
            f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f}",
            "–" if math.isnan(result.val) else f"{100 * result.val:.2f} ± {100 * result.val_std:.2f}",
            "–" if math.isnan(result.far) else f"{100 * result.far:.2f}",
            f"{result.threshold:.2f}",
        )
    return out


def _draw_worst(result: VerificationResult, pairs: BinSet, path: Path) -> Path:
    """Write a picture of the pairs that are judged worst; its path from the root."""
    from evaluate.pictures import Pair, pair_sheet

    groups = {
        f"{kind.capitalize()} pairs, worst first": [
            Pair([pairs.encoded[2 * i]], [pairs.encoded[2 * i + 1]], f"distance {result.distances[i]:.3f}")
            for i in chosen
        ]
        for kind, chosen in worst_pairs(result, pairs.same).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)  # the name of a set may have a folder
    pair_sheet(groups).savefig(path, dpi=130)
    return path.resolve()


def set_results(result: VerificationResult, same: np.ndarray) -> dict:
    """The figures of a set and what a report draws from."""
    edges = np.linspace(0, 4, 161)
    return {
        "pairs": len(same),
        **result.summary(),
        "folds": result.folds.tolist(),
        "roc": {"far": result.fpr.tolist(), "tar": result.tpr.tolist()},
        "histogram": {
            "edges": edges.tolist(),
            "genuine": np.histogram(result.distances[same], edges)[0].tolist(),
            "impostor": np.histogram(result.distances[~same], edges)[0].tolist(),
        },
    }


if __name__ == "__main__":
    run(main)
