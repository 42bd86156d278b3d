"""Parquet files in the image layout of Hugging Face's data sets: a struct column (bytes, path) and a label column.

Parquet has no access to one image: a whole row group is read. The last ones are kept in memory, so reading in order or
in blocks (``shuffle: block``) is quick and random reading is not.
"""

import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.log import get_logger
from pipelines.sources.columns import class_names, find_columns, load_pyarrow, number, read_labels, reading
from pipelines.sources.source import LabelledSource

logger = get_logger(__name__)

_BLOCKS = 64  # of which a window of ``shuffle: block`` is made, each in a row group of its own at least
_KEPT = 1 << 30  # bytes of row groups that are kept: a window of ``shuffle: block`` has some 330 MB of 112x112 JPEGs


class ParquetSource(LabelledSource):
    """The images of Parquet files, in the order of the files and within them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        parquet = load_pyarrow().parquet
        self._paths = list(paths)
        self._files = []
        for path in self._paths:
            with reading(path, "Parquet"):
                # Not mapped: where a mapped file has shrunk, the kernel ends the process.
                self._files.append(parquet.ParquetFile(path, memory_map=False))
        self._image, label = find_columns(self._files[0].schema_arrow, self._paths[0])
        labels = []
        for path, file in zip(self._paths, self._files):
            with reading(path, "Parquet"):
                column = file.read([label]).column(0)
            labels.append(read_labels(column, f"{path}, column '{label}'"))
        if not any(map(len, labels)):
            raise UserError(f"{self._paths[0]} holds no images")
        self._groups = [(file, n) for file, each in enumerate(self._files) for n in range(each.metadata.num_row_groups)]
        found = [self._files[file].metadata.row_group(group) for file, group in self._groups]
        self._sizes = np.array([(group.num_rows, group.total_byte_size) for group in found], np.int64)
        self._ends = np.cumsum(self._sizes[:, 0])
        known = class_names(self._files[0].schema_arrow, label)
        super().__init__(*number(labels, known, self._paths[0].parent))
        self._lock = threading.Lock()  # a ParquetFile must not be read by two threads at a time
        self._kept: dict[int, Any] = {}  # row groups by their numbers, the one that was used last at the end
        self._bytes = 0  # of them all
        fits = _BLOCKS * self._sizes[:, 1].mean() <= _KEPT
        logger.warning(
            "%s: Parquet is read by row groups, and each process keeps up to %.3g GiB of them in memory; "
            + (
                "train on it with shuffle: block, or convert it to RecordIO first"
                if fits
                else "these are too large to "
                "train on, so that images are read again and again: convert it to RecordIO first"
            ),
            *(self._paths[0].parent, _KEPT / 2**30),
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

    def fingerprint(self) -> int:
        return zlib.crc32(self._sizes.astype("<i8").tobytes(), super().fingerprint())

    def _load(self, number: int) -> Any:
        """The images of a row group, out of those that are kept if it is there."""
        if number in self._kept:
            self._kept[number] = self._kept.pop(number)
            return self._kept[number]
        values = self._kept[number] = self._read_group(number)
        self._bytes += values.nbytes
        while self._bytes > _KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return values

    def _read_group(self, number: int) -> Any:
        file, group = self._groups[number]
        with reading(self._paths[file], "Parquet"):
            # In pyarrow's own threads, memory that is let go of would stay with each of them.
            table = self._files[file].read_row_group(group, columns=[self._image], use_threads=False)
            column = table.column(0).combine_chunks()
            return column if column.type.num_fields == 0 else column.field("bytes")
