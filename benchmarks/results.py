"""What every benchmark does with its rows: a table to read, a JSON file to keep, a chart to look at."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """What a figure has to be read with: processor, cores, GPU, versions."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def slug() -> str:
    """The machine in a file name: the GPU's name, or the number of cores."""
    here = machine()
    return here["gpu"].lower().replace(" ", "_") if here["gpu"] else f"cpu{here['cores']}"


def show(rows: Sequence[Row], title: str) -> None:
    """Print rows as a table; their keys are the columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(number(row.get(column, "")) for column in columns))
    Console(markup=False, emoji=False).print(table)  # names as they are


def number(value: object) -> str:
    """A value to read; what is no number as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def save(name: str, rows: Sequence[Row], folder: Path = RESULTS, **more: Any) -> Path:
    """Write ``<name>_<machine>.json`` with the machine, the command, ``more`` and the rows; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{slug()}.json"
    program = Path(sys.argv[0])
    program = program.parent if program.stem == "__main__" else program  # of a package
    record = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "command": " ".join(["python -m", f"benchmarks.{program.stem}", *sys.argv[1:]]),
        **more,
        "rows": list(rows),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def bar_chart(rows: Sequence[Row], label: str, value: str, title: str, path: Path) -> None:
    """Horizontal bars of one column of the rows, the first row on top."""
    figure = Figure(figsize=(8, 0.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([str(row[label]) for row in rows], [row[value] for row in rows], color="#3b6fb6")
    axes.bar_label(bars, [number(float(row[value])) for row in rows], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(value.replace("_", " "))
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
