"""Wrong labels of data sets, found by embedding: images of somebody else, labels of several people, people twice.

``python -m evaluate.labels DATA --checkpoint FILE --output DIR`` writes ``labels.json``, pictures of what is found,
``labels.png``, and ``changes.txt``, by which ``python -m pipelines.prepare convert DATA OUT --changes DIR/changes.txt``
writes the data set with other labels. Lines of it that are wrong can be removed before. ``features.npy`` is for
``--features``, when other thresholds are tried.

What is done is in `evaluate.protocols.label_errors`. Best is a network that has not been trained on these labels. One
that has been learns wrong labels, too, the longer it is trained: it finds fewer of them.
"""

import argparse
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.features.files import load_features
from evaluate.features.options import (
    add_cache_option,
    add_checkpoint_option,
    add_network_options,
    load_embedder,
    refuse_network_options,
)
from evaluate.features.ranks import World, take_device
from evaluate.protocols.embeddings import finite, normalised
from evaluate.protocols.label_errors import NOBODY, LabelErrors, check_comparable, find_label_errors
from evaluate.reporting.findings import LabelError, Labels
from evaluate.reporting.results import write_json
from evaluate.reporting.schema import FORMAT
from pipelines.common.command import cosine, run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, save_array
from pipelines.common.json_output import add_json_option, only_json
from pipelines.sources import open_sources
from pipelines.sources.changes import Changes
from pipelines.sources.source import Source, all_labels

_KINDS = {
    "nobody": "Like nobody: left out",
    "moved": "Somebody else: moved to the label on the right",
    "new": "A further person under a label: a new label",
    "merged": "One person under two labels: one label",
}
_ROWS = 30  # of each kind that are shown
_COLUMNS = 4  # images of each side


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Thresholds are cosines, found from the data unless they are given.",
    )
    parser.add_argument("data", nargs="+", type=Path, help="several are looked at as one, as 'prepare convert' does")
    which = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint_option(which, required=False)
    which.add_argument("--features", type=Path, help="features.npy of an earlier call, or of another program")
    parser.add_argument("--views", type=int, choices=(1, 2), help="of an image in a row of another program's features")
    parser.add_argument(
        "--stray", type=cosine, help="an image is less like the others of its label if it is wrong there"
    )
    parser.add_argument(
        "--move", type=cosine, help="it is at least as like the person of the label that it is moved to"
    )
    parser.add_argument("--merge", type=cosine, help="people of two labels that are at least as alike are one")
    parser.add_argument("--output", type=Path, default=Path("labels"), help="folder for what is found")
    add_network_options(parser)
    add_cache_option(parser)
    add_json_option(parser, "what labels.json holds")
    args = parser.parse_args()
    refuse_network_options(parser, args)
    if args.views and args.checkpoint:
        parser.error("--views is for --features; a checkpoint's images have one")
    return args


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Find wrong labels, print and write them; returns what ``labels.json`` holds."""
    check_folder(args.output)
    if args.checkpoint:
        check_own_features(args.output)
    source = open_sources(args.data)
    labels = all_labels(source, np.arange(len(source)))
    labels[labels >= source.num_classes] = -1
    check_comparable(labels)
    embeddings, network_input = read_or_embed(args, source)
    found = find_label_errors(
        embeddings, labels, source.num_classes, stray=args.stray, move=args.move, merge=args.merge
    )
    check_left(found)
    errors = describe(source, labels, found)
    result = Labels(
        format=FORMAT,
        input=network_input,
        images=len(labels),
        identities=len(np.unique(labels[labels >= 0])),
        stray=asdict(found.stray),
        move=found.move,
        merge=found.merge,
        errors=errors,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    document = write_json(args.output / "labels.json", result)
    changes(source, errors).save(args.output / "changes.txt")
    draw_errors(source, labels, errors, args.output / "labels.png")
    print_counts(result)
    say(f"written: {args.output}/labels.json, labels.png and changes.txt")
    return document


def check_own_features(output: Path) -> None:
    """Raise ``UserError`` where the features that are to be written would replace others than this command's."""
    features = output / "features.npy"
    if features.exists() and not (output / "labels.json").exists():
        raise UserError(
            f"{features} is there, and would be replaced: give it by --features if it is of these images, or name "
            "another --output"
        )


def read_or_embed(args: argparse.Namespace, source: Source) -> tuple[np.ndarray, str | None]:
    """Unit embeddings float32 (n, d) of all images, and which images the network took, where that is known.

    Their mean is taken off: what all faces have in common, which is much of a weak network's embeddings, would make
    strangers alike (Garcia-Romero and Espy-Wilson, "Analysis of i-vector Length Normalization", 2011).
    """
    network_input = None
    if args.features:
        features = load_features(args.features, len(source), args.views)
    else:
        embedder, network_input = load_embedder(args, World(take_device()), flip=False)
        features = embedder(source)
        args.output.mkdir(parents=True, exist_ok=True)
        save_array(args.output / "features.npy", features)
    embeddings = normalised(features.astype(np.float32).sum(axis=1))
    finite(embeddings, "the features", source.describe)
    return normalised(embeddings - embeddings.mean(axis=0)), network_input


def check_left(found: LabelErrors) -> None:
    """Raise ``UserError`` where no label has two images left: that is no finding, but a threshold out of place."""
    group = found.people.group
    if np.bincount(group[group >= 0]).max() < 2:
        usual = np.nanmedian(found.people.likeness)
        raise UserError(
            f"by --stray {found.stray.threshold:.3g} no two images of a label show one person; half of the images are "
            f"less than {usual:.2f} like the others of theirs: give a lower threshold, or none, to have one found"
        )


def describe(source: Source, labels: np.ndarray, found: LabelErrors) -> list[LabelError]:
    """What is wrong, kind by kind, the worst first."""
    errors = []
    for image in np.flatnonzero(found.labels != labels).tolist():
        to, group = int(found.labels[image]), int(found.people.group[image])
        if to == NOBODY:
            error = "nobody"
        elif to >= source.num_classes:
            error = "new"
        else:
            error = "merged" if group >= 0 and found.people.first[group] else "moved"
        errors.append(
            LabelError(
                image=image,
                label=int(labels[image]),
                identity=source.identity(int(labels[image])),
                where=source.describe(image),
                error=error,
                to=to,
                likeness=round(float(found.people.likeness[image]), 4),
                other=source.identity(int(found.other[image])),
                cosine=round(float(found.cosine[image]), 4),
            )
        )
    return sorted(errors, key=lambda error: ([*_KINDS].index(error.error), _order(error), error.label, error.image))


def _order(error: LabelError) -> float:
    return -error.cosine if error.error in ("moved", "merged") else error.likeness or 0.0


def changes(source: Source, errors: list[LabelError]) -> Changes:
    """What ``prepare convert`` is to do."""
    return Changes.of(source, {error.image: (error.to, reason(error)) for error in errors})


def reason(error: LabelError) -> str:
    own, like = f"not {error.identity} ({error.likeness or 0:.2f})", f"like {error.other} ({error.cosine:.2f})"
    return {
        "nobody": f"{own}, and nobody else",
        "moved": f"{own}, {like}",
        "new": f"{own}, a further person",
        "merged": f"{error.identity} is {like}",
    }[error.error]


def draw_errors(source: Source, labels: np.ndarray, errors: list[LabelError], path: Path) -> None:
    """Picture the worst of each kind: left images of the label, right what is wrong there, and where it belongs."""
    from evaluate.reporting.pictures import Pair, pair_sheet, save_figure  # matplotlib takes its time to import

    wrong = {error.image for error in errors if error.error != "merged"}

    def right(label: int) -> list[int]:
        return [image for image in np.flatnonzero(labels == label).tolist() if image not in wrong]

    groups: dict[str, list[Pair]] = {}
    for kind, title in _KINDS.items():
        rows: dict[tuple[int, ...], list[LabelError]] = defaultdict(list)
        for error in errors:
            if error.error == kind:
                rows[(error.label, error.to) if kind in ("new", "merged") else (error.image,)].append(error)
        for one in list(rows.values())[:_ROWS]:
            images = [error.image for error in one]
            if kind == "merged":
                sides = images, right(one[0].to)
            else:
                sides = right(one[0].label), images + (right(one[0].to) if kind == "moved" else [])
            left, other = (source.read(np.array(side[:_COLUMNS], np.int64))[0] for side in sides)
            groups.setdefault(title, []).append(Pair(left, other, reason(one[0])))
    save_figure(pair_sheet(groups, columns=2), path, dpi=112)


def print_counts(result: Labels) -> None:
    stray, counts = result.stray, Counter[str](error.error for error in result.errors)
    say(
        f"{result.images} images of {result.identities} identities, of which some {100 * stray.share:.1f} % show others"
    )
    say(f"thresholds: stray {stray.threshold:.3f} (finds {100 * stray.recall:.0f} % of them)")
    say(f"{'':>11} move {result.move:.3f}, merge {result.merge:.3f}")
    for kind, title in _KINDS.items():
        say(f"{counts[kind]:>10}  {title}")


if __name__ == "__main__":
    run(main)
