"""Networks against what is published: each measured by every protocol whose data are given, in one table and page.

    python -m benchmarks.against runs/a b.onnx --ijbc /data/IJBC --bins lfw.bin cfp_fp.bin

What was done before is kept in ``--runs``, features of IJB, too.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks import results
from benchmarks.command import ROOT, command
from benchmarks.reproduced import Row, label, named, of_config, other_settings
from evaluate.reporting.page import rows_table, write_document
from evaluate.reporting.results import read_results
from evaluate.reporting.schema import Results
from evaluate.reporting.uncertainty import Uncertain
from evaluate.reporting.words import bracket, tar_names
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names, replacing
from train.config import load_config


class Figure(NamedTuple):
    """A rate of ours, its 95 % interval if it has one, and what a reader calls it."""

    title: str
    value: float
    interval: tuple[float, float] | None


_CLASSES = {"published row": " class='words'"}  # of cells whose text is long


def protocols(options: argparse.Namespace) -> dict[str, list[object]]:
    """The commands of the protocols whose data are given, but for checkpoint and output."""
    found: dict[str, list[object]] = {}
    kept = "--cache", options.runs.resolve() / "embeddings"
    for target in ("IJBC", "IJBB"):
        if data := getattr(options, target.lower()):
            found[target] = ["-m", "evaluate.ijb", "--data", data.resolve(), "--target", target]
    if options.bins:
        found["bins"] = ["-m", "evaluate.verification", *kept, "--bins", *(path.resolve() for path in options.bins)]
    if options.tinyface:
        found["tinyface"] = ["-m", "evaluate.tinyface", *kept, "--data", options.tinyface.resolve()]
    return found


def measure(checkpoint: Path, name: str, what: Mapping[str, Sequence[object]], options: argparse.Namespace) -> Path:
    """Evaluate by each protocol in a folder of its own, or only what is left to do; the folder of all."""
    folder: Path = options.runs.resolve() / name
    for protocol, start in what.items():
        output = folder / protocol
        line = [*start, "--checkpoint", checkpoint.resolve(), "--name", name, "--threads", options.threads]
        asked = json.dumps([*map(str, line), _stamps(checkpoint)])
        done = output / "asked.json"
        if not (output / "results.json").exists() or not done.exists() or done.read_text() != asked:
            say(f"{name}: {protocol}")
            command(output, *line, "--output", output)
            with replacing(done) as partial:
                partial.write_text(asked)
    return folder


def _stamps(checkpoint: Path) -> list[tuple[str, int]]:
    """What tells weights from others of the same name."""
    files = sorted(checkpoint.glob("*.pt")) if checkpoint.is_dir() else [checkpoint]
    return [(file.name, file.stat().st_mtime_ns) for file in files]


def figures(found: Results) -> Iterator[tuple[str, str, Figure]]:
    """The figures that rows are published with: their kind and key there."""
    parts: list[tuple[str, str, str, float | None, Uncertain, str]] = []  # the last is the figure's key in its part
    if one := found.verification:
        for far, title in tar_names(one.tar).items():
            parts.append((str(found.target), far, f"{found.target} {title}", one.tar[far], one, far))
    for name, pairs in (found.sets or {}).items():
        parts.append(("bins", name.lower(), f"{name} accuracy", pairs.accuracy, pairs, "accuracy"))
    if tiny := found.tinyface:
        parts += [("tinyface", key, f"TinyFace {key}", rate, tiny, key) for key, rate in tiny.rates.items()]
    for kind, key, title, value, having, place in parts:
        if value is not None:
            yield kind, key, Figure(title, value, having.bounds([place]).get(place))


def compare(model: str, found: Sequence[Results], rows: Sequence[Row], notes: Sequence[str]) -> list[results.Row]:
    """A model's figures, each beside each published row that has it; alone where none has. ``notes`` are of the rows.

    ``over`` is our figure less the published one, and ``over_interval`` our interval less it: nobody publishes theirs.
    """
    table: list[results.Row] = []
    for kind, key, figure in (entry for part in found for entry in figures(part)):
        ours = {"model": model, "figure": figure.title, "rate": figure.value, "interval": figure.interval}
        beside = [(row, note) for row, note in zip(rows, notes) if key in row.get(kind, {})]
        for row, note in beside:
            rate = row[kind][key]
            table.append(
                {
                    **ours,
                    "published": rate,
                    "over": figure.value - rate,
                    "over_interval": figure.interval and tuple(bound - rate for bound in figure.interval),
                    "row": label(row),
                    "source": row["source"],
                    "note": note,
                }
            )
        if not beside:
            table.append(ours)
    return table


def verdict(row: results.Row) -> str:
    """What a difference says, in words."""
    bounds = row.get("over_interval")
    if not bounds:
        return ""
    return "within noise" if bounds[0] <= 0 <= bounds[1] else "above" if row["over"] > 0 else "missed"


def printed(row: results.Row) -> results.Row:
    """A row as a reader wants it, in percent."""
    shown = {"figure": row["figure"], "ours %": f"{100 * row['rate']:.2f}"}
    if row["interval"]:
        shown["ours %"] += f" {bracket(row['interval'])}"
    if "published" in row:
        shown["published %"] = f"{100 * row['published']:.2f}"
        shown["over it"] = f"{100 * row['over']:+.2f}"
        if row["over_interval"]:
            shown["over it"] += f" {bracket(row['over_interval'], '+.2f')}"
        shown |= {"": verdict(row), "published row": row["row"]}
    return shown


def printed_of(model: str, table: Sequence[results.Row]) -> list[results.Row]:
    """A model's rows as a reader wants them; which published row each meets is left out where all meet one."""
    own = [row for row in table if row["model"] == model]
    one = len({row["row"] for row in own if "row" in row}) == 1
    return [{key: cell for key, cell in printed(row).items() if not (one and key == "published row")} for row in own]


def page(table: Sequence[results.Row], told: Mapping[str, str]) -> str:
    """The table as HTML, a section a model, with what is told of each."""
    parts = ["<p class='lead'>In percent, with 95 % intervals by resampling people (pairs, where a set names nobody). "]
    parts.append("Over it: ours less the published figure, whose own interval nobody publishes. ")
    parts.append("Within noise: the published figure lies in our interval.</p>")
    for model, text in told.items():
        rows = printed_of(model, table)
        first, *columns = dict.fromkeys(key for row in rows for key in row)
        lines = [_line(row, columns) for row in rows]
        parts.append(f"<h2>{escape(model)}</h2><p class='lead'>{escape(text)}</p>{rows_table(first, columns, lines)}")
    return "".join(parts)


def _line(row: results.Row, columns: Sequence[str]) -> str:
    cells = (
        f"<td{_CLASSES.get(column, '')}>{escape(row.get(column, '–' if column else ''))}</td>" for column in columns
    )
    return f'<tr class="ours"><th>{escape(row["figure"])}</th>{"".join(cells)}</tr>'


def beside(checkpoint: Path, words: str) -> tuple[list[Row], list[str]]:
    """The published rows of a checkpoint, and for each the settings in which its config is another."""
    if words != "-":
        rows = named(words)
        return rows, [""] * len(rows)
    kept = checkpoint / "config.yaml"
    if not kept.is_file():
        return [], []
    config = load_config(kept)
    rows = of_config(config)
    return rows, [", ".join(other_settings(config, row)) for row in rows]


def main() -> None:
    """Measure the checkpoints, print the table of each, write JSON, the table's page and the report of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="a run, weights or .onnx")
    parser.add_argument(
        "--reproduces",
        nargs="+",
        default=[],
        metavar="WORDS",
        help="for each checkpoint, words of the published rows it stands beside; '-': those that its config trains",
    )
    parser.add_argument("--bins", type=Path, nargs="+", default=[], help="verification sets, .bin files")
    parser.add_argument("--ijbb", type=Path, help="IJB-B as evaluate.ijb takes it")
    parser.add_argument("--ijbc", type=Path, help="IJB-C as evaluate.ijb takes it")
    parser.add_argument("--tinyface", type=Path, help="TinyFace as evaluate.tinyface takes it")
    parser.add_argument("--threads", type=int, default=4, help="decoding threads")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/against", help="folder for what was done before")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file and the page")
    options = parser.parse_args()
    what = protocols(options)
    if not what:
        raise UserError("there are no data to measure with: give --bins, --ijbc, --ijbb or --tinyface")
    words = options.reproduces or ["-"] * len(options.checkpoints)
    if len(words) != len(options.checkpoints):
        raise UserError(
            f"--reproduces says something of {len(words)} networks, {len(options.checkpoints)} are given; "
            "'-' leaves one to its config"
        )
    chosen = [beside(*pair) for pair in zip(options.checkpoints, words)]
    names = distinct_names([path.with_suffix("") if path.is_file() else path for path in options.checkpoints])
    table: list[results.Row] = []
    told: dict[str, str] = {}
    folders: list[Path] = []
    for checkpoint, name, (rows, notes) in zip(options.checkpoints, names, chosen):
        folder = measure(checkpoint, name, what, options)
        folders += [folder / protocol for protocol in what]
        table += compare(name, [read_results(folder / protocol) for protocol in what], rows, notes)
        told[name] = (
            "; ".join(
                f"stands beside {label(row)}" + (f", trained with other values of {note}" if note else "")
                for row, note in zip(rows, notes)
            )
            or "stands beside no published row: name one with --reproduces"
        )
    for name, text in told.items():
        say(f"{name} {text}")
        results.show(printed_of(name, table), name)
    path = results.save("against", table, options.output)
    write_document(
        path.with_suffix(".html"), "Against published figures", "<h1>Against published figures</h1>", page(table, told)
    )
    command(
        options.runs.resolve(),
        "-m",
        "evaluate.report",
        "--results",
        *folders,
        "--output",
        options.runs.resolve() / "report",
    )
    say(f"written: {path}, {path.with_suffix('.html')} and {options.runs / 'report/index.html'}")


if __name__ == "__main__":
    run(main)
