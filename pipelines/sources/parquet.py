"""Parquet files in the image layout of Hugging Face's data sets: a struct column (bytes, path) and a label column.

Parquet has no access to one image: a whole row group is read. The last ones are kept, so reading in order or in blocks
(``shuffle: block``) is quick and random reading is not.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.log import get_logger
from pipelines.sources.identities import Identities, label_text, number_labels, number_texts
from pipelines.sources.source import LabelledSource

logger = get_logger(__name__)

LABEL_COLUMNS = ("label", "labels", "identity", "identity_id", "person", "person_id", "subject", "subject_id")
_PERHAPS = ("class", "class_id", "name", "id")  # these may also tell images apart
_GROUPS = 1024  # row groups that are kept: some 100 images each, as Hugging Face writes them


class ParquetSource(LabelledSource):
    """The images of Parquet files, in the order of the files and within them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"Parquet needs a package ({error}): pip install 'facemill[convert]'") from None
        self._paths = list(paths)
        self._files = []
        for path in self._paths:
            with _reading(path):
                # Not mapped: where a mapped file has shrunk, the kernel ends the process.
                self._files.append(pyarrow.parquet.ParquetFile(path, memory_map=False))
        self._image, label = _columns(self._files[0].schema_arrow, self._paths[0])
        columns = []
        for path, file in zip(self._paths, self._files):
            with _reading(path):
                columns.append(file.read([label]).column(0))
        if not any(map(len, columns)):
            raise UserError(f"{self._paths[0]} holds no images")
        groups = [
            (file, group, self._files[file].metadata.row_group(group).num_rows)
            for file in range(len(self._files))
            for group in range(self._files[file].metadata.num_row_groups)
        ]
        self._groups = [group[:2] for group in groups]
        self._ends = np.cumsum([rows for _, _, rows in groups])
        known = _class_names(self._files[0].schema_arrow, label)
        super().__init__(*_number(columns, label, known, self._paths))
        self._lock = threading.Lock()  # a ParquetFile must not be read by two threads at a time
        self._load = lru_cache(_GROUPS)(self._read_group)
        logger.warning(
            "%s: Parquet is read by row groups; train on it with shuffle: block, or convert it to RecordIO first",
            self._paths[0].parent,
        )

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = []
        for index, group in zip(indices, np.searchsorted(self._ends, indices, side="right").tolist()):
            with self._lock:
                values = self._load(group)
            value = values[int(index) - int(self._ends[group]) + len(values)]
            buffer = value.as_buffer()
            if not buffer or not len(buffer):
                raise UserError(f"{self._paths[0].parent / self.describe(index)} has no bytes")
            encoded.append(np.frombuffer(buffer, np.uint8))
        return encoded, self._labels[indices]

    def place(self, index: int) -> str:
        group = int(np.searchsorted(self._ends, index, side="right"))
        file, group_of_file = self._groups[group]
        row = int(index) - (int(self._ends[group - 1]) if group else 0)
        return f"{self._paths[file].name} row group {group_of_file} row {row}"

    def _read_group(self, number: int) -> Any:
        file, group = self._groups[number]
        with _reading(self._paths[file]):
            column = self._files[file].read_row_group(group, columns=[self._image]).column(0).combine_chunks()
            return column if column.type.num_fields == 0 else column.field("bytes")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What pyarrow raises at a damaged file is of many classes, and does not name it."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no sound Parquet file, or cut short; copy it again ({reason})") from None


def _columns(schema: Any, path: Path) -> tuple[str, str]:
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


def _number(columns: list[Any], label: str, known: list[str], paths: list[Path]) -> tuple[Identities, np.ndarray]:
    """The identities and labels of the files' columns of labels, whose name is ``label``."""
    folder = paths[0].parent
    labels = [_labels(column, f"{path}, column '{label}'") for path, column in zip(paths, columns)]
    if all(isinstance(part, np.ndarray) for part in labels):
        return number_labels(np.concatenate(labels), known, folder)
    return number_texts([str(text) for part in labels for text in part], known, folder)


def _labels(column: Any, where: str) -> np.ndarray | list[str]:
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


def _class_names(schema: Any, label: str) -> list[str]:
    """The names of a ``ClassLabel`` column, which Hugging Face keeps in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError):
        return []
