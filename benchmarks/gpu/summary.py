"""What the acceptance run prints and writes: progress, tables, the JSON file, the page."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import results
from benchmarks.gpu import page, tables
from benchmarks.gpu.conduct import Outcome
from benchmarks.gpu.defaults import choose
from benchmarks.gpu.part import Row
from pipelines.common import drivers

_CONSOLE = Console(markup=False, emoji=False, highlight=False)


class Progress:
    """The part that runs and its seconds, while it runs; a line for each that is over."""

    def __init__(self) -> None:
        self._status = _CONSOLE.status("")

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._status.stop()

    def tell(self, part: str, seconds: float, limit: float) -> None:
        self._status.update(f"{part}: {seconds:.0f} s of {limit:.0f}")

    def done(self, outcome: Outcome) -> None:
        count = sum(row["kind"] == "check" for row in outcome.rows)
        failed = f", FAIL: {'; '.join(outcome.failures)}" if outcome.failures else ""
        reason = f" ({outcome.said.splitlines()[0]})" if outcome.said else ""
        text = f"{outcome.part:15}{outcome.state}{reason}, {outcome.seconds:.0f} s, {count} checks{failed}"
        _CONSOLE.print(text, soft_wrap=True)


def finish(outcomes: Sequence[Outcome], folder: Path | None) -> bool:
    """Print and write everything; returns whether something does not hold."""
    rows: list[Row] = [{"part": outcome.part, **row} for outcome in outcomes for row in outcome.rows]
    rows += [
        {"part": outcome.part, "kind": "skipped", "name": f"all of {outcome.part}", "reason": outcome.said}
        for outcome in outcomes
        if outcome.state == "skipped"
    ]
    won = choose(rows)
    _print(outcomes, rows, won)
    folder = folder or results.RESULTS
    states = [
        {"part": each.part, "state": each.state, "seconds": round(each.seconds, 1), "said": each.said}
        for each in outcomes
    ]
    left_out = [outcome.part for outcome in outcomes if outcome.state == "skipped"]
    failed = any(outcome.failures for outcome in outcomes) or len(left_out) == len(outcomes)
    found = versions()
    path = results.save("gpu", rows, folder, versions=found, passed=not failed, defaults=won, parts=states)
    page.write(path.with_suffix(".html"), results.machine() | found, outcomes, rows, won)
    verdict = ("FAIL" if failed else "PASS") + (f" without {', '.join(left_out)}, for lack of time" if left_out else "")
    _CONSOLE.print(f"{verdict}: {path}, {path.with_suffix('.html')}")
    return failed


def versions() -> dict[str, Any]:
    """The versions below torch: driver, CUDA, NCCL, cuDNN, DALI, Triton; None for what is not there."""
    cuda = torch.version.cuda
    nccl = torch.cuda.nccl.version() if cuda and torch.distributed.is_nccl_available() else None
    builds = [*drivers.dali_builds(), "triton"]
    packages = {name: _version(name) for name in builds}
    return {
        "driver": drivers.installed_driver(),
        "cuda": cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        **packages,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(outcomes: Sequence[Outcome], rows: list[Row], won: list[str]) -> None:
    table = Table("part", "what must hold", "found", "limit", "", title="what must hold", title_justify="left")
    for *cells, passed in tables.checks(rows):
        table.add_row(*map(Text, cells), Text("PASS" if passed else "FAIL", "green" if passed else "bold red"))
    _CONSOLE.print(table)
    figures = Table("part", "figure", "of", "value", title="figures", title_justify="left")
    for row in rows:
        if row["kind"] == "figure":
            figures.add_row(*map(Text, (row["part"], row["name"], tables.of(row), tables.value(row))))
    _CONSOLE.print(figures)
    for row in rows:
        if row["kind"] == "skipped":
            _CONSOLE.print(f"left out: {row['part']}: {row['name']} ({row['reason']})")
    for outcome in outcomes:
        if outcome.state in ("failed", "out of time"):
            _CONSOLE.print(f"\n{outcome.part} {outcome.state}: {outcome.said}")
    if won:
        _CONSOLE.print("\nwhat won here, to paste into a config:")
        for line in won:
            _CONSOLE.print(f"  {line}")
