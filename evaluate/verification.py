"""Verification on ``.bin`` sets (LFW, CFP-FP, AgeDB-30, ...): 10-fold accuracy and TAR at a fixed FAR.

The protocol of Huang et al., "Labeled Faces in the Wild" (2007), as FaceNet and insightface made it customary: the
embedding is the L2-normalised sum of the original's and the mirrored image's, a pair is called the same when its
squared distance lies below a threshold, and the threshold is chosen on nine folds and judged on the tenth.

``python -m evaluate.verification --help``, alone or under torchrun.

``--quality`` and ``--groups`` ask what pairs of low quality, and groups of people, do to the errors. Beside ``lfw.bin``
may lie ``lfw.quality.npy``, a number an image, and ``lfw.people.txt``, the person of each image, a line each.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from evaluate.breakdowns.pairs import PairGroups
from evaluate.breakdowns.sets import QUALITIES, Beside, Judged, read_beside, rfw_breakdown, set_breakdown, set_groups
from evaluate.features.options import (
    add_cache_option,
    add_checkpoint_option,
    add_name_option,
    add_network_options,
    load_embedder,
)
from evaluate.features.pairs import PairImages, read_pairs
from evaluate.features.ranks import is_main, ranks
from evaluate.protocols.embeddings import mean_norms
from evaluate.protocols.folds import (
    VerificationResult,
    resampled,
    roc_band,
    thresholds_of,
    verify,
    worst_pairs,
)
from evaluate.protocols.resampling import draw
from evaluate.protocols.rfw import rfw_groups
from evaluate.protocols.side_lists import read_groups, unpacked
from evaluate.reporting.breakdowns import ByFmr
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import VerificationSet
from evaluate.reporting.tables import accuracy_table, print_breakdown
from evaluate.reporting.uncertainty import uncertainty
from pipelines.common.command import run, say
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, distinct_names
from pipelines.common.json_output import add_json_option, only_json
from pipelines.sources.bins import BinSet


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Verification of a model on .bin sets such as LFW.")
    add_checkpoint_option(parser)
    parser.add_argument("--bins", type=Path, nargs="+", required=True, help="lfw.bin hadrian.xz African_pairs.txt ...")
    parser.add_argument("--output", type=Path, help="folder for results.json and pictures of the worst pairs")
    parser.add_argument("--no-flip", action="store_true", help="do not add the mirrored image's embedding")
    parser.add_argument(
        "--quality",
        nargs="+",
        choices=QUALITIES,
        default=[],
        help="FNMR without the pairs of least quality: the embedding's length, or what lies beside each set",
    )
    parser.add_argument("--groups", type=Path, help="file of persons and groups, whose errors are compared")
    add_network_options(parser)
    add_cache_option(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Judge the model, print and write what is found; returns what ``results.json`` holds, None but on one rank."""
    keep_freed_memory()
    if args.output:
        check_folder(args.output)
    names = distinct_names([bare(path) for path in args.bins])
    group_of = read_groups(args.groups) if args.groups else {}
    loaded = {name: load(name, path, args, group_of) for name, path in zip(names, args.bins)}
    if group_of and is_main() and not any(each.groups for each in loaded.values()):
        raise UserError(f"{args.groups}: no set has two groups to compare")
    sets: dict[str, VerificationSet] = {}
    judged: dict[str, Judged] = {}
    with ranks() as world:
        embed, network_input = load_embedder(args, world, flip=not args.no_flip)
        for name, each in loaded.items():
            features, same = each.images.embedded(embed), each.pairs.same
            result = verify(features, same, thresholds_of(name))
            sets[name] = verification_set(result, same)
            judged[name] = Judged(result.distances, same, each.beside)
            if world.main and (args.quality or each.groups):
                norms = mean_norms(features) if "norm" in args.quality else None
                sets[name].by = set_breakdown(name, judged[name], norms, each.groups)
            if args.output and world.main:
                sets[name].worst = f"worst_{name}.png"
                _draw_worst(result, each.pairs, args.output / f"worst_{name}.png")
        if not world.main:
            return None
    Console().print(accuracy_table(sets))
    for name, part in sets.items():
        print_breakdown(name, part.by)
    rfw = rfw_groups({name: part.accuracy for name, part in sets.items()})
    groups_of_rfw: dict[str, ByFmr | None] = {}
    if rfw:
        say(
            f"RFW, mean of its four groups: {100 * rfw.mean:.2f} ± {100 * rfw.std:.2f} % (sample deviation), "
            f"worst {100 * rfw.worst:.2f} %"
        )
        by = rfw_breakdown(judged)
        print_breakdown("RFW", by)
        groups_of_rfw["rfw"] = by
    return write_results(args.output, args.name, input=network_input, flip=not args.no_flip, sets=sets, **groups_of_rfw)


@dataclass(frozen=True)
class Loaded:
    """A set before it is judged: its pairs, their distinct images, what is known of these, and which groups of people
    are compared, known to one rank."""

    pairs: BinSet
    images: PairImages
    beside: Beside
    groups: PairGroups | None


def load(name: str, path: Path, args: argparse.Namespace, group_of: Mapping[str, str]) -> Loaded:
    """Read a set and what lies beside it, so that a fault in these is told before the long work."""
    pairs = read_pairs(path)
    images = PairImages(path, pairs.encoded)
    beside = read_beside(path, pairs.same, quality="file" in args.quality, people=bool(group_of))
    groups = set_groups(name, pairs.same, beside.names or [], group_of) if group_of and is_main() else None
    return Loaded(pairs, images, beside, groups)


def bare(path: Path) -> Path:
    """Without ``.bin``, ``.xz``, ``.bin.xz`` or ``.txt``."""
    return unpacked(path).with_suffix("")


def _draw_worst(result: VerificationResult, pairs: BinSet, path: Path) -> None:
    """Write a picture of the pairs that are judged worst."""
    from evaluate.reporting.pictures import save_figure, worst_sheet  # matplotlib takes its time to import

    path.parent.mkdir(parents=True, exist_ok=True)  # the name of a set may have a folder
    save_figure(worst_sheet(worst_pairs(result, pairs.same), result.distances, pairs.encoded), path, dpi=130)


def verification_set(result: VerificationResult, same: np.ndarray) -> VerificationSet:
    """The figures of a set and what a report draws from."""
    edges, signs = np.linspace(0, 4, 161), draw(len(same))
    figures, kind = result.summary(), 2 * np.arange(len(same)) + same
    return VerificationSet(
        **figures,
        folds=result.folds.tolist(),
        roc={"far": result.fpr.tolist(), "tar": result.tpr.tolist()},
        band={far: list(pair) for far, pair in roc_band(result, same, signs).items()},
        histogram={
            "edges": edges.tolist(),
            "genuine": np.histogram(result.distances[same], edges)[0].tolist(),
            "impostor": np.histogram(result.distances[~same], edges)[0].tolist(),
        },
        # A pair is known by its place and kind: models on other pairs are not compared.
        **uncertainty(figures, resampled(result, same, signs), "pairs", kind, signs, {"val": np.count_nonzero(same)}),
    )


if __name__ == "__main__":
    run(main)
