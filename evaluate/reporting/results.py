"""``results.json``: how the commands of ``evaluate`` end, and what ``evaluate.report`` reads."""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from evaluate.reporting.schema import FORMAT, Results
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.files import remove_leftovers, replacing


def write_results(folder: Path, name: str | None, **figures: object) -> Path:
    """Write ``results.json`` whole or not at all.

    Args:
        folder: where to; it is made.
        name: the model's; None takes the folder's.
        figures: further fields of `Results`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    results = Results(format=FORMAT, name=name or folder.resolve().name or "results", **figures)
    path = folder / "results.json"
    write_json(path, results)
    say(f"written: {path}")
    return path


def write_json(path: Path, results: BaseModel) -> None:
    """Write the fields that were set."""
    text = json.dumps(results.model_dump(exclude_unset=True), allow_nan=False, indent=1)
    with replacing(path) as partial:
        partial.write_text(text + "\n")


def results_file(path: Path) -> Path:
    """The file itself, or a folder's ``results.json``."""
    return path / "results.json" if path.is_dir() else path


def read_results(path: Path) -> Results:
    """The results in a file or in a folder's ``results.json``, of this format, an older one, or made by hand.

    Raises ``ValueError`` naming the file, and the field that a report could not show.
    """
    path = results_file(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: give the --output folder of an evaluation")
    try:
        return Results.model_validate(json.loads(path.read_text()), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is no result that can be shown: {field + ': ' if field else ''}{reason}") from None
    except (ValueError, RecursionError) as error:  # of json or of the encoding
        raise UserError(f"{path} is no JSON: {error}") from None
