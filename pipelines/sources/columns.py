"""The columns of a table of images in Hugging Face's layout: images, as bytes or in a struct with them, and labels."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import UserError, one_line
from pipelines.common.log import get_logger
from pipelines.sources.identities import Identities, label_text, number_labels, number_texts

logger = get_logger(__name__)

LABEL_COLUMNS = ("label", "labels", "identity", "identity_id", "person", "person_id", "subject", "subject_id")
_PERHAPS = ("class", "class_id", "name", "id")  # these may also tell images apart


def load_pyarrow() -> Any:
    """The package, with its module for Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"Parquet and Arrow need a package ({error}): pip install 'facemill[convert]'") from None
    return pyarrow


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """What pyarrow raises at a damaged file of a ``kind`` is of many classes, and does not name it."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} is no sound {kind} file, or cut short; copy it again ({one_line(error)})") from None


def find_columns(schema: Any, path: Path) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    import pyarrow

    binary = (pyarrow.binary(), pyarrow.large_binary())
    images = [
        field.name
        for field in schema
        if field.type in binary
        or (pyarrow.types.is_struct(field.type) and any(f.name == "bytes" and f.type in binary for f in field.type))
    ]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    perhaps = [name for name in _PERHAPS if name in schema.names]
    if not images or not labels and len(perhaps) != 1:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; expected are images (bytes, or a struct with 'bytes')"
            f" and labels called {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}"
        )
    if not labels:
        logger.warning("%s: identities are taken from the column '%s'", path, perhaps[0])
    return images[0], (labels or perhaps)[0]


def number(labels: Sequence[np.ndarray | list[str]], known: list[str], folder: Path) -> tuple[Identities, np.ndarray]:
    """The identities and labels of images whose labels are given in pieces, as `read_labels` gives them."""
    if all(isinstance(part, np.ndarray) for part in labels):
        return number_labels(np.concatenate(labels), known, folder)
    return number_texts([str(text) for part in labels for text in part], known, folder)


def read_labels(column: Any, where: str) -> np.ndarray | list[str]:
    """The class numbers, int64 (n,), of a file's column of labels, or the texts."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise UserError(f"{where}: the label of row {column.is_null().to_pylist().index(True)} is missing")
    if types.is_string(column.type) or types.is_large_string(column.type):
        return [_at(row, text, where) for row, text in enumerate(column.to_pylist())]
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
        raise UserError(f"{where} has the type {column.type}; labels are whole numbers or texts")
    values = column.to_numpy()
    with np.errstate(invalid="ignore"):  # NaN and what int64 cannot hold
        numbers = values.astype(np.int64)
    if len(wrong := np.flatnonzero((numbers != values) | (numbers < 0))):
        raise UserError(f"{where}: label {values[wrong[0]]} of row {wrong[0]} is no class number")
    return numbers


def _at(row: int, text: str, where: str) -> str:
    try:
        return label_text(text)
    except ValueError as error:
        raise UserError(f"{where}, row {row}: {error}") from None


def class_names(schema: Any, label: str) -> list[str]:
    """The names of a ``ClassLabel`` column, which Hugging Face keeps in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError):
        return []
