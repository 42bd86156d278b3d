"""``results.json``: how the commands of ``evaluate`` end, and what ``evaluate.report`` reads."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evaluate.reporting.schema import FORMAT, Results
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.files import remove_leftovers, replacing


def write_results(folder: Path | None, name: str | None, **figures: object) -> dict[str, Any]:
    """Write ``results.json`` whole or not at all, and return what it holds.

    Args:
        folder: where to; it is made. None writes nothing.
        name: the model's; None takes the folder's.
        figures: further fields of `Results`.
    """
    name = name or (folder.resolve().name if folder else "") or "results"
    results = Results(format=FORMAT, name=name, **figures)
    if folder is None:
        return document_of(results)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    path = folder / "results.json"
    document = write_json(path, results)
    say(f"written: {path}")
    return document


def write_json(path: Path, results: BaseModel) -> dict[str, Any]:
    """Write the fields that were set, and return them."""
    document = document_of(results)
    text = json.dumps(document, allow_nan=False, indent=1)
    with replacing(path) as partial:
        partial.write_text(text + "\n")
    return document


def document_of(results: BaseModel) -> dict[str, Any]:
    """The fields that were set, as JSON has them."""
    return results.model_dump(exclude_unset=True)


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
