"""Verification on ``.bin`` sets (LFW, CFP-FP, AgeDB-30, ...): 10-fold accuracy and validation rate at a fixed FAR.

The protocol of Huang et al., "Labeled Faces in the Wild" (2007), as FaceNet and insightface made it customary: the
embedding is the L2-normalised sum of the original's and the mirrored image's, a pair is called the same when its
squared distance lies below a threshold, and the threshold is chosen on nine folds and judged on the tenth.

``python -m evaluate.verification --help``, alone or under torchrun.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluate.features.options import PRECISIONS, add_network_options
from evaluate.features.preprocessing import input_options
from evaluate.protocols.folds import FOLDS, VerificationResult, verify, worst_pairs
from pipelines.common.command import run
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names
from pipelines.sources.bins import BinSet, read_bin


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
    from evaluate.features.embed import embed
    from evaluate.features.network import load_network
    from evaluate.features.ranks import ranks
    from evaluate.reporting.results import write_results
    from pipelines.common.cpu import keep_freed_memory
    from pipelines.sources.memory import MemorySource

    keep_freed_memory()
    names = distinct_names([path.with_suffix("") for path in args.bins])
    sets = {name: read_set(path) for name, path in zip(names, args.bins)}
    results, reports = {}, {}
    with ranks() as world:
        network = load_network(args.checkpoint, args.network, world.device, given)
        if world.main:
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
                world_size=world.size,
                threads=args.threads,
                autocast=PRECISIONS[args.precision],
            )
            results[name] = verify(features, pairs.same)
            reports[name] = set_results(results[name], pairs.same)
            if args.output and world.main:
                reports[name]["worst"] = str(_draw_worst(results[name], pairs, args.output / f"worst_{name}.png"))
        if world.main:
            Console().print(table(results))
            if args.output:
                write_results(
                    args.output, {"name": args.name, "input": network.input, "flip": not args.no_flip, "sets": reports}
                )


def read_set(path: Path) -> BinSet:
    """A ``.bin`` set that has pairs enough for the protocol; a ``ValueError`` names the file if not."""
    pairs = read_bin(path)
    if len(pairs.same) < FOLDS:
        raise UserError(
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
    from evaluate.reporting.pictures import Pair, pair_sheet

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
