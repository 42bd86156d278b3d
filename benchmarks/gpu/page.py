"""The acceptance run as a page: what must hold, what won, the figures as charts and tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.gpu import tables
from benchmarks.gpu.conduct import Outcome
from benchmarks.gpu.part import Row
from benchmarks.gpu.parts import PARTS
from benchmarks.results import number
from evaluate.reporting.charts import COLOURS, STYLE
from evaluate.reporting.page import inline, write_document

# By part: the figure that a chart shows, what its bars are called by, and what its colours stand for.
Chart = tuple[str, tuple[str, ...], str]
CHARTS: dict[str, list[Chart]] = {
    "decode": [
        ("loader alone", ("decode_on", "hw_decoder_load", "threads"), "batch"),
        ("step slowed down by", ("decode_on", "hw_decoder_load", "threads"), "batch"),
        ("cores used", ("decode_on", "hw_decoder_load", "threads"), "batch"),
    ],
    "head": [
        ("step of the head", ("identities", "rate", "margin"), "method"),
        ("peak memory beside the centres", ("identities", "rate", "margin"), "method"),
    ],
    "step": [
        ("images/s of a training step", ("network", "way"), ""),
        ("share of the measured product", ("network", "way"), ""),
        ("step", ("network", "way"), ""),
    ],
    "plan": [("images/s of a training step, planned", ("network", "way"), "")],
    "compile": [("images/s of a training step", ("network", "way"), "")],
}


def write(path: Path, machine: Mapping[str, Any], outcomes: Sequence[Outcome], rows: list[Row], won: list[str]) -> None:
    """The page of all outcomes; ``rows`` have their part, ``won`` are lines of a config."""
    tested = [row for row in rows if row["kind"] == "check"]
    counts = {
        "checks passed": sum(row["passed"] for row in tested),
        "checks failed": sum(not row["passed"] for row in tested),
        "parts that did not end well": sum(outcome.state in ("failed", "out of time") for outcome in outcomes),
        "left out": sum(row["kind"] == "skipped" for row in rows),
    }
    tiles = "".join(f"<div class='tile'><b>{count}</b><span>{name}</span></div>" for name, count in counts.items())
    facts = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in machine.items()
    )
    main = [f"<div class='tiles'>{tiles}</div><div class='table'><table><tbody>{facts}</tbody></table></div>"]
    if won:
        main.append(f"<h2>What won here</h2><pre>{escape(chr(10).join(won))}</pre>")
    main.append("<h2>What must hold</h2>" + _table(_CHECKS, _checks(rows)))
    for outcome in outcomes:
        main += _part(outcome)
    header = f"<h1>Acceptance run</h1><div>{escape(str(machine.get('gpu') or 'no GPU'))}</div>"
    write_document(path, "Facemill acceptance run", header, "".join(main))


_CHECKS = ("part", "what", "found", "limit", "")


def _checks(rows: list[Row]) -> list[list[str]]:
    checks = sorted(tables.checks(rows), key=lambda check: check[-1])  # those that fail first
    return [[*map(escape, check[:-1]), "pass" if check[-1] else "<b>FAIL</b>"] for check in checks]


def _part(outcome: Outcome) -> list[str]:
    """Heading, charts, figures, what was left out, and what a part that failed has said."""
    about = PARTS[outcome.part].about if outcome.part in PARTS else ""
    title = outcome.part.replace("_", " ").capitalize()
    html = [f"<h2>{escape(title)}</h2><p class='lead'>{escape(about)}: {outcome.state}, {outcome.seconds:.0f} s</p>"]
    if outcome.said:
        html.append(f"<pre>{escape(outcome.said)}</pre>")
    figures = [row for row in outcome.rows if row["kind"] == "figure"]
    drawn = [inline(figure) for spec in CHARTS.get(outcome.part, ()) if (figure := _bars(figures, *spec)) is not None]
    if drawn:
        html.append(f"<div class='charts'>{''.join(drawn)}</div>")
    if figures:
        cells = [[escape(row["name"]), escape(tables.of(row)), escape(tables.value(row))] for row in figures]
        html.append(_table(("figure", "of", "value"), cells))
    left_out = [[escape(row["name"]), escape(row["reason"])] for row in outcome.rows if row["kind"] == "skipped"]
    if left_out:
        html.append(_table(("left out", "why"), left_out))
    return html


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f"<div class='table'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _bars(figures: Sequence[Row], name: str, labels: Sequence[str], colour: str) -> Figure | None:
    """Horizontal bars of the figures called ``name``, in the order in which they came."""
    chosen = [row for row in figures if row["name"] == name and isinstance(row["value"], (int, float))]
    if not chosen:
        return None
    groups = list(dict.fromkeys(row.get("of", {}).get(colour) for row in chosen))
    bars = list(dict.fromkeys(_label(row, labels) for row in chosen))
    height = 0.8 / len(groups)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.8, 1.1 + 0.3 * len(bars) * max(1.0, len(groups) / 1.5)), layout="constrained")
        axes = figure.subplots()
        for place, group in enumerate(groups):
            rows = {_label(row, labels): row for row in chosen if row.get("of", {}).get(colour) == group}
            at = [bars.index(label) + (place - (len(groups) - 1) / 2) * height for label in rows]
            drawn = axes.barh(at, [row["value"] for row in rows.values()], height, color=COLOURS[place % len(COLOURS)])
            axes.bar_label(drawn, [number(row["value"]) for row in rows.values()], padding=3, fontsize=7.5)
            drawn.set_label(f"{colour} {number(group)}" if colour else "")
        axes.set_yticks(range(len(bars)), bars)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set(title=name, xlabel=chosen[0]["unit"])
        axes.grid(axis="y", visible=False)
        if len(groups) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _label(row: Row, keys: Sequence[str]) -> str:
    found = row.get("of", {})
    words = {"hw_decoder_load": "load ", "threads": "threads ", "rate": "rate "}
    return ", ".join(words.get(key, "") + number(found[key]) for key in keys if key in found)
