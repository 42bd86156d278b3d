"""Data sets of one's own: build, check and look at them. ``python -m pipelines.prepare COMMAND --help``.

DATA is what training takes: a folder with train.rec, identity/*.jpg, *.tar, *.parquet, *.arrow or data.mdb, a .rec or
.lmdb file, a list (.lst, .txt), or a quoted glob of shards.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pipelines.common.command import at_least, run, say
from pipelines.common.files import check_file, replacing
from pipelines.common.json_output import add_json_option, only_json
from pipelines.common.new_folder import check_new
from pipelines.common.pillow import QUALITY
from pipelines.prepare.align import Align, detector, read_landmarks
from pipelines.prepare.check import ERRORS, IMAGE_REMARKS, Report, check
from pipelines.prepare.convert import FORMS, LEFT_OUT, SHARD_SIZE, Written, convert
from pipelines.prepare.encode import Reencode
from pipelines.prepare.landmarks import taken_along
from pipelines.prepare.pairs import draw_pairs, find_files, find_images, read_pairs, split_identities
from pipelines.prepare.summary import identity_sheet, in_words, save_page, summarise
from pipelines.sources import open_source, open_sources
from pipelines.sources.bins import write_bin
from pipelines.sources.folder import FolderSource
from pipelines.sources.source import Source, all_labels

_EXAMPLES = 3  # of each problem that are shown; the report has all
_PAIRS = 6000
_SHEET = 12  # rows, and columns
_QUALITIES = at_least(1, most=100)  # of JPEGs; libjpeg would take any number for one of these


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.prepare", description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[1]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_align(commands)
    _add_check(commands)
    _add_repair(commands)
    _add_inspect(commands)
    _add_split(commands)
    _add_pairs(commands)
    arguments = parser.parse_args()
    arguments.command(arguments)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("convert", help="write data sets as RecordIO or as WebDataset shards")
    parser.set_defaults(command=_convert, refuse=parser.error)
    parser.add_argument(
        "data", nargs="+", help="several become one; the people of each are others than those of the rest"
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--changes",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to leave out and new labels, as evaluate.labels and evaluate.overlap write them",
    )
    parser.add_argument("--to", choices=FORMS, default="recordio")
    parser.add_argument(
        "--shuffle",
        type=at_least(0, most=2**128 - 1),
        metavar="SEED",
        help="in a random order (RecordIO: im2rec's layout)",
    )
    parser.add_argument("--size", type=at_least(1), help="resize images that are not SIZE x SIZE pixels")
    parser.add_argument("--quality", type=_QUALITIES, help="encode all images anew, as JPEGs of this quality")
    parser.add_argument("--shard-size", type=at_least(1), help=f"images a WebDataset shard; default: {SHARD_SIZE}")
    parser.add_argument("--threads", type=at_least(1), help="default: the CPUs available")


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.shard_size and arguments.to != "webdataset":
        arguments.refuse("--shard-size is for --to webdataset")
    check_new(arguments.out)
    changes = arguments.size or arguments.quality
    source = open_sources(arguments.data, arguments.changes)
    written = convert(
        source,
        arguments.out,
        form=arguments.to,
        shuffle=arguments.shuffle,
        transform=Reencode(arguments.size, arguments.quality) if changes else None,
        shard_size=arguments.shard_size or SHARD_SIZE,
        threads=arguments.threads,
        landmarks=taken_along(arguments.data, len(source), arguments.to),
        data=arguments.data,
    )
    _tell(arguments.out, written, source)


def _add_align(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("align", help="crop photographs to 112 x 112 by five landmarks")
    parser.set_defaults(command=_align)
    parser.add_argument("data", help="photographs; with --landmarks, the file of landmarks itself")
    parser.add_argument("out", type=Path, help="the folder to write, as RecordIO")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--landmarks", action="store_true", help="DATA has lines 'identity/image.jpg x1 y1 … x5 y5'")
    how.add_argument("--detector", type=Path, help="find them by OpenCV's YuNet, whose weights are this .onnx file")
    parser.add_argument("--quality", type=_QUALITIES, default=QUALITY, help="of the JPEGs written")
    parser.add_argument("--threads", type=at_least(1), help="default: the CPUs available")


def _align(arguments: argparse.Namespace) -> None:
    check_new(arguments.out)
    if arguments.detector:
        source, landmarks = open_source(arguments.data), detector(arguments.detector)
    else:
        source, landmarks = read_landmarks(Path(arguments.data))
    aligned = np.zeros((len(source), 5, 2), np.float32)
    transform = Align(landmarks, arguments.quality, aligned)
    written = convert(source, arguments.out, transform=transform, threads=arguments.threads, landmarks=aligned)
    _tell(arguments.out, written, source)


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "check", help="decode every image; the exit status is 1 if training would stumble over something"
    )
    parser.set_defaults(command=_check)
    _add_check_options(parser)
    parser.add_argument("--report", type=Path, help="a JSON file to write, with every problem found")
    add_json_option(parser, "what --report writes")


def _add_repair(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("repair", help="write a data set anew without its bad images, with a new .idx")
    parser.set_defaults(command=_repair)
    _add_check_options(parser)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--drop", nargs="*", default=[], choices=IMAGE_REMARKS, help="also leave these out")


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", help="several are taken as one, as for convert")
    parser.add_argument(
        "--image-size", type=at_least(1), help="what images should measure; default: what the first one does"
    )
    parser.add_argument("--tiny", type=at_least(0), default=2, help="name identities with fewer images")
    parser.add_argument("--threads", type=at_least(1), help="default: the CPUs available")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.report:
        check_file(arguments.report)
    with only_json(arguments.json) as tell:
        report = _checked(arguments, save=arguments.report)
        over = []
        if bad := len(report.bad_images(*ERRORS)):
            over.append(f"{bad} images: 'prepare repair' leaves them out")
        if report.missing:
            whole = report.images + report.missing
            over.append(f"{report.missing} of {whole} images, which are missing: {report.shortage}")
        say(f"training would stumble over {'; over '.join(over) or 'nothing'}")
        if arguments.report:
            say(arguments.report)
        tell(report.as_dict())
    sys.exit(0 if report.sound else 1)


def _repair(arguments: argparse.Namespace) -> None:
    check_new(arguments.out)
    bad = _checked(arguments).bad_images(*ERRORS, *arguments.drop)
    source = open_sources(arguments.data)
    kept = np.setdiff1d(np.arange(len(source)), bad)
    landmarks = taken_along(arguments.data, len(source))
    written = convert(source, arguments.out, indices=kept, threads=arguments.threads, landmarks=landmarks)
    _tell(arguments.out, written, source)
    say(f"{len(bad)} bad images were dropped")


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("inspect", help="figures of a data set, and pictures of random identities")
    parser.set_defaults(command=_inspect, refuse=parser.error)
    parser.add_argument("data")
    parser.add_argument("--sheet", type=Path, help="a PNG to write: a row an identity")
    parser.add_argument("--html", type=Path, help="a page to write with figures and pictures")
    parser.add_argument("--rows", type=at_least(1), help=f"identities on the sheet; default: {_SHEET}")
    parser.add_argument("--columns", type=at_least(1), help=f"images of each; default: {_SHEET}")
    parser.add_argument("--sample", type=at_least(1), default=1000, help="images that are looked into")
    parser.add_argument("--seed", type=at_least(0), default=0)
    add_json_option(parser, "the figures")


def _inspect(arguments: argparse.Namespace) -> None:
    if (arguments.rows or arguments.columns) and not (arguments.sheet or arguments.html):
        arguments.refuse("--rows and --columns are for --sheet and --html")
    for picture in filter(None, (arguments.sheet, arguments.html)):
        check_file(picture)
    with only_json(arguments.json) as tell:
        source = open_source(arguments.data)
        figures = summarise(source, sample=arguments.sample, seed=arguments.seed)
        texts = in_words(figures)
        for name, value in texts.items():
            say(f"{name:<22}{value}")
        if arguments.sheet or arguments.html:
            rows, columns = arguments.rows or _SHEET, arguments.columns or _SHEET
            sheet = identity_sheet(source, rows=rows, columns=columns, seed=arguments.seed)
        if arguments.sheet:
            with replacing(arguments.sheet) as temporary:
                sheet.save(temporary, "PNG")
            say(arguments.sheet)
        if arguments.html:
            save_page(arguments.html, arguments.data, texts, sheet)
            say(arguments.html)
        tell(figures)


def _add_split(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("split", help="write two data sets, OUT/train and OUT/heldout, of different people")
    parser.set_defaults(command=_split)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=at_least(1), required=True, help="identities of OUT/heldout")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--threads", type=at_least(1), help="default: the CPUs available")


def _split(arguments: argparse.Namespace) -> None:
    outs = arguments.out / "train", arguments.out / "heldout"
    for out in outs:
        check_new(out)
    source = open_source(arguments.data)
    parts = split_identities(source, arguments.held_out, seed=arguments.seed)
    landmarks = taken_along([arguments.data], len(source))
    for out, indices in zip(outs, parts):
        written = convert(source, out, indices=indices, threads=arguments.threads, landmarks=landmarks)
        _tell(out, written, source)


def _add_pairs(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("pairs", help="make a .bin verification set")
    parser.set_defaults(command=_pairs, refuse=parser.error)
    parser.add_argument("data")
    parser.add_argument("out", type=Path, help="the .bin file to write")
    parser.add_argument("--pairs-file", type=Path, help="in LFW's format; of a folder it takes name/name_0001.jpg")
    parser.add_argument(
        "--count", type=at_least(1), help=f"pairs to draw, half of them genuine, in ten folds; default: {_PAIRS}"
    )
    parser.add_argument("--seed", type=at_least(0), help="of what is drawn; default: 0")


def _pairs(arguments: argparse.Namespace) -> None:
    drawn = arguments.count is not None or arguments.seed is not None
    if drawn and arguments.pairs_file:
        arguments.refuse("--count and --seed are for drawn pairs, not for those of --pairs-file")
    check_file(arguments.out)
    source = open_source(arguments.data)
    if arguments.pairs_file:
        named, same = read_pairs(arguments.pairs_file)
        wanted = [image for pair in named for image in pair]
        folder = isinstance(source, FolderSource)
        images = find_files(Path(arguments.data), wanted) if folder else find_images(source, wanted)
    else:
        labels = all_labels(source, np.arange(len(source)))
        pairs, same = draw_pairs(labels, arguments.count or _PAIRS, seed=arguments.seed or 0)
        images, _ = source.read(pairs.ravel())
    write_bin(arguments.out, images, same)
    say(f"{arguments.out}: {same.sum()} genuine and {(~same).sum()} impostor pairs")


def _checked(arguments: argparse.Namespace, save: Path | None = None) -> Report:
    report = check(
        open_sources(arguments.data),
        image_size=arguments.image_size,
        tiny=arguments.tiny,
        threads=arguments.threads,
    )
    if save:
        report.save(save)
    say(f"{', '.join(arguments.data)}: {report.images} images of {report.identities} identities")
    for kind, found in report.problems.items():
        say(f"{len(found):>10} {kind.replace('_', ' ')}")
        for text in list(found.values())[:_EXAMPLES]:
            say(f"{'':>12}{text}")
    return report


def _tell(out: Path, written: Written, source: Source) -> None:
    say(f"{out}: {written.images} images of {written.identities} identities")
    if written.left_out:
        say(f"{written.left_out} images were left out: {out / LEFT_OUT} says which and why")
    if source.missing:
        say(f"{source.missing} images are missing and cannot be brought back from what is there: {source.shortage}")


if __name__ == "__main__":
    run(main)
