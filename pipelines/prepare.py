"""Data sets of one's own: build, check and look at them. ``python -m pipelines.prepare COMMAND --help``.

DATA is what training takes: a folder with train.rec, identity/*.jpg, *.tar, *.parquet or data.mdb, a .rec file, a list
(.lst, .txt), or a quoted glob of shards.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pipelines.dataset.convert import FORMS, LEFT_OUT, Written, convert
from pipelines.dataset.encode import Reencode
from pipelines.dataset.verify import ERRORS, KINDS, Report, verify
from pipelines.entry import run
from pipelines.sources import open_source

_EXAMPLES = 3  # of each problem that are shown; the report has all


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.prepare", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_verify(commands)
    _add_repair(commands)
    arguments = parser.parse_args()
    arguments.command(arguments)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("convert", help="write a data set as RecordIO or as WebDataset shards")
    parser.set_defaults(command=_convert)
    parser.add_argument("data")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--to", choices=FORMS, default="recordio")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="in a random order (RecordIO: im2rec's layout)")
    parser.add_argument("--size", type=int, help="resize images that are not SIZE x SIZE pixels")
    parser.add_argument("--quality", type=int, help="encode all images anew, as JPEGs of this quality")
    parser.add_argument("--shard-size", type=int, default=10_000, help="images a shard")
    parser.add_argument("--threads", type=int, help="default: the CPUs available")


def _convert(arguments: argparse.Namespace) -> None:
    changes = arguments.size or arguments.quality
    written = convert(
        open_source(arguments.data),
        arguments.out,
        form=arguments.to,
        shuffle=arguments.shuffle,
        transform=Reencode(arguments.size, arguments.quality) if changes else None,
        shard_size=arguments.shard_size,
        threads=arguments.threads,
    )
    _tell(arguments.out, written)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify", help="decode every image; the exit status is 1 if training would stumble over something"
    )
    parser.set_defaults(command=_verify)
    _add_checks(parser)
    parser.add_argument("--report", type=Path, help="a JSON file to write, with every problem found")


def _add_repair(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("repair", help="write a data set anew without its bad images, with a new .idx")
    parser.set_defaults(command=_repair)
    _add_checks(parser)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--drop", nargs="*", default=[], metavar="KIND", help=f"also leave out: {', '.join(KINDS[len(ERRORS) : -2])}"
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int, help="what images should measure; default: what the first one does")
    parser.add_argument("--tiny", type=int, default=2, help="name identities with fewer images")
    parser.add_argument("--threads", type=int, help="default: the CPUs available")


def _verify(arguments: argparse.Namespace) -> None:
    report = _checked(arguments)
    if arguments.report:
        report.save(arguments.report)
        print(arguments.report)
    sys.exit(0 if report.sound else 1)


def _repair(arguments: argparse.Namespace) -> None:
    kinds = *ERRORS, *arguments.drop
    Report(0, 0).bad_images(*kinds)  # a kind that does not exist should not cost an hour
    bad = _checked(arguments).bad_images(*kinds)
    source = open_source(arguments.data)
    kept = np.setdiff1d(np.arange(len(source)), bad)
    _tell(arguments.out, convert(source, arguments.out, indices=kept, threads=arguments.threads))
    print(f"{len(bad)} bad images were dropped")


def _checked(arguments: argparse.Namespace) -> Report:
    report = verify(
        open_source(arguments.data),
        image_size=arguments.image_size,
        tiny=arguments.tiny,
        threads=arguments.threads,
    )
    print(f"{arguments.data}: {report.images} images of {report.identities} identities")
    for kind, found in report.problems.items():
        print(f"{len(found):>10} {kind.replace('_', ' ')}")
        for text in list(found.values())[:_EXAMPLES]:
            print(f"{'':>12}{text}")
    return report


def _tell(out: Path, written: Written) -> None:
    print(f"{out}: {written.images} images of {written.identities} identities")
    if written.left_out:
        print(f"{written.left_out} images were left out: {out / LEFT_OUT} says which and why")


if __name__ == "__main__":
    run(main)
