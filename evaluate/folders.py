"""Your own people, 1:1 or 1:N, and thresholds for wanted rates of false accepts: ``python -m evaluate.folders DIR``.

DIR holds ``identity/image.jpg``: all pairs are compared. Where the names of some images have "gallery" in them, these
are references, and only a reference and another image make a pair. Or DIR holds ``gallery/identity/image.jpg``,
``probe/identity/image.jpg`` and, of people who are not in the gallery, ``unknown/image.jpg`` or
``unknown/identity/image.jpg``: each probe searches the gallery.

Images are aligned faces, or photographs with ``--align``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.features.options import (
    add_cache_option,
    add_checkpoint_option,
    add_name_option,
    add_network_options,
    load_embedder,
)
from evaluate.features.ranks import World, take_device
from evaluate.own_people.confusions import draw_confusions
from evaluate.own_people.faces import Photographs, align_faces, open_photographs
from evaluate.own_people.gallery import FPIRS, check_enrolled, own_gallery, searchable
from evaluate.own_people.pairs import compared, own_pairs
from evaluate.protocols.all_pairs import FARS, check_measurable
from evaluate.protocols.intervals import LEAST_ABOVE
from evaluate.protocols.roc import allowed
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import Thresholds
from evaluate.reporting.tables import print_rates, print_thresholds
from evaluate.reporting.words import rate_name, search_names, tar_names
from pipelines.common.command import run, say
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder
from pipelines.common.json_output import add_json_option, only_json
from pipelines.prepare.align import detector


def rate(text: str) -> float:
    """A rate of false accepts, of an option, with the digits by which its figures are called."""
    try:
        value = float(f"{float(text):g}")
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate between 0 and 1, such as 1e-4")
    return value


def _names(rates: Sequence[float]) -> str:
    return " ".join(map(rate_name, rates))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="identity/*.jpg, or gallery/, probe/ and unknown/")
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and pictures of confusions")
    parser.add_argument(
        "--align", type=Path, metavar="YUNET", help="align photographs by OpenCV's YuNet, an .onnx file"
    )
    parser.add_argument(
        "--far",
        type=rate,
        nargs="+",
        help=f"wanted FARs of 1:1, default: {_names(FARS)}; or FPIRs of 1:N, default: {_names(FPIRS)}",
    )
    parser.add_argument("--no-flip", action="store_true", help="do not add the mirrored image's embedding")
    add_network_options(parser)
    add_cache_option(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds")
    args = parser.parse_args()
    if args.far:
        args.far = list(dict.fromkeys(args.far))  # a rate given twice is one
    return args


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Judge the model, print and write what is found; returns what ``results.json`` holds."""
    keep_freed_memory()
    check_folder(args.output)
    if not args.data.is_dir():
        raise FileNotFoundError(f"there is no folder {args.data}")
    folders = {kind: args.data / kind for kind in ("gallery", "probe", "unknown") if (args.data / kind).is_dir()}
    several = folders.keys() >= {"gallery", "probe"}
    if not several and (alone := folders.keys() & {"gallery", "probe"}):
        raise UserError(
            f"{args.data} holds {alone.pop()}/ alone: 1:N needs gallery/ and probe/; for 1:1 no person may be called so"
        )
    opened = {kind: open_photographs(folder) for kind, folder in (folders if several else {"": args.data}).items()}
    fars = args.far or (FPIRS if several else FARS)
    _check(opened, fars)  # what the names show is told before the long work
    align = detector(args.align) if args.align else None
    embed, network_input = load_embedder(args, World(take_device()), flip=not args.no_flip)
    crops: dict[str, np.ndarray] = {}
    if align:
        opened = {kind: align_faces(found, args.data / kind, align, crops) for kind, found in opened.items()}
        if several:
            opened["probe"] = searchable(opened["probe"], opened["gallery"])
        _check(opened, fars)
    faces = {kind: found.embedded(embed) for kind, found in opened.items()}
    if several:
        many = own_gallery(faces["gallery"], faces["probe"], faces.get("unknown"), fars)
        many.worst = draw_confusions(many, args.output, crops)
        print_rates("1:N", many.rates, many.interval, names=search_names(many.tpir))
        _tell_thresholds("FPIR", many, fars, many.unknown, "images of unknown people")
        return write_results(args.output, args.name, input=network_input, flip=not args.no_flip, own_gallery=many)
    one = own_pairs(faces[""], fars)
    one.worst = draw_confusions(one, args.output, crops)
    print_rates("1:1", one.tar, one.interval, met=one.far, names=tar_names(one.tar))
    _tell_thresholds("FAR", one, fars, one.impostor, "pairs of two people")
    return write_results(args.output, args.name, input=network_input, flip=not args.no_flip, own_pairs=one)


def _check(opened: Mapping[str, Photographs], fars: Sequence[float]) -> None:
    """Raise ``UserError`` where these images make no pairs, or no searches."""
    if "probe" in opened:
        check_enrolled(opened["gallery"].names, opened["probe"].names)
    else:
        check_measurable(*compared(opened[""].paths, opened[""].names), fars)


def _tell_thresholds(name: str, found: Thresholds, wanted: Sequence[float], count: int, of: str) -> None:
    """Print the thresholds, and why some of the wanted rates have none, of ``count`` scores."""
    if found.threshold:
        title = f"thresholds by {name}: accept what exceeds them"
        print_thresholds(title, name, found.threshold, found.threshold_interval)
    if unsure := [rate_name(rate) for rate in found.threshold if not found.threshold_interval[rate]]:
        say(
            f"{name} {', '.join(unsure)}: fewer than {LEAST_ABOVE} {of} exceed the threshold, too few to tell an "
            "interval, and it may be far too low: take more people, or a larger rate"
        )
    missing = [rate for rate in wanted if f"{rate:g}" not in found.threshold]
    if low := [rate_name(rate) for rate in missing if allowed(rate, count) < 1]:
        say(f"{count} {of} are too few for {name} {', '.join(low)}")
    if high := [rate_name(rate) for rate in missing if allowed(rate, count) >= 1]:
        say(f"{name} {', '.join(high)} has no threshold: of {count} {of} only the highest scores are held")


if __name__ == "__main__":
    run(main)
