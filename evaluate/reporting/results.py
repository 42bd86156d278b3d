"""How evaluations end: a table on the terminal and ``results.json``, which ``evaluate.report`` reads."""

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.common.errors import UserError
from pipelines.common.files import replacing


def write_results(folder: Path, results: dict) -> Path:
    """Write ``results.json`` whole or not at all; a missing name becomes the folder's, NaN and infinity null."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {**results, "name": results.get("name") or folder.resolve().name}
    path = folder / "results.json"
    text = json.dumps(_finite(results), allow_nan=False, indent=1)
    with replacing(path) as partial:
        partial.write_text(text + "\n")
    print(f"written: {path}")
    return path


def results_file(path: Path) -> Path:
    """The file itself, or a folder's ``results.json``."""
    return path / "results.json" if path.is_dir() else path


def read_results(path: Path) -> dict:
    """The results in a file or in a folder's ``results.json``."""
    path = results_file(path)
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(results, dict) or "name" not in results:
        raise UserError(f"{path} is no result of evaluate.ijb, evaluate.verification or evaluate.megaface")
    return results


def print_rates(title: str, rates: dict[str, float], met: dict[str, float] | None = None) -> None:
    """One line of percentages under their names; for TARs at wanted FARs, the FARs really ``met`` below them."""
    table = Table(title=title, title_justify="left")
    if met:
        table.add_column()
    for name in rates:
        table.add_column(name, justify="right")
    table.add_row(*["TAR %"] * bool(met), *(f"{100 * rate:.2f}" for rate in rates.values()))
    if met:
        table.add_row("FAR % met", *(f"{100 * met[name]:.2g}" for name in rates))
    Console().print(table)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
