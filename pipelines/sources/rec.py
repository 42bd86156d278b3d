"""The images of a RecordIO file."""

import zlib
from pathlib import Path

import numpy as np

from pipelines.common.log import get_logger
from pipelines.sources.identities import Identities, read_identities
from pipelines.sources.recordio import LABEL_LIMIT, RecordReader
from pipelines.sources.recordio_index import read_index

logger = get_logger(__name__)

_SAMPLE = 1024  # records whose labels make a fingerprint


class RecordSource:
    """The images of a RecordIO file. Nothing is kept of an image but its offset; labels are read with the images."""

    def __init__(self, rec: str | Path) -> None:
        index = read_index(rec)
        if index.num_classes > LABEL_LIMIT:
            logger.warning("%s: RecordIO's float32 labels tell only %d classes apart surely", rec, LABEL_LIMIT)
        self.num_classes = index.num_classes
        self.missing = index.missing
        self.shortage = f"{rec} is cut short or damaged; copy it again" if index.missing else ""
        self._stored = index.labels  # of the classes, if other than their numbers
        names = read_identities(Path(rec).parent)
        if names and len(names) != index.num_classes:
            logger.warning("%s: %d classes, but identities.json has %d names", rec, index.num_classes, len(names))
        self._identities = Identities(index.num_classes, names or list(map(str, self._stored.tolist())))
        self._records = RecordReader(rec, index.offsets, index.first_record, index.end)
        self._end = index.end

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded, stored = self._records.read(indices)
        with np.errstate(invalid="ignore"):  # NaN and what int64 cannot hold
            labels = stored.astype(np.int64)
        if len(wrong := np.flatnonzero(labels != stored)):
            raise self._records.error(indices[wrong[0]], f"label {stored[wrong[0]]:.10g} is no class number")
        if not all(map(len, encoded)):
            empty = next(index for index, image in zip(indices, encoded) if not len(image))
            raise self._records.error(empty, "the record holds no image")
        return encoded, self._numbers(labels)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        stored = self._records.labels(indices)
        whole = np.isfinite(stored) & (stored == np.floor(stored)) & (abs(stored) < 2**62)
        return self._numbers(np.where(whole, stored, -1).astype(np.int64))

    def _numbers(self, labels: np.ndarray) -> np.ndarray:
        """Class numbers of labels as stored; -1 for one that no class has."""
        if not len(self._stored):
            return labels
        numbers = np.searchsorted(self._stored, labels).clip(max=len(self._stored) - 1)
        return np.where(self._stored[numbers] == labels, numbers, -1)

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        try:
            label = np.ravel(self._records.unpack(index)[0].label)[0]
        except (ValueError, OSError):
            return self._records.describe(index)
        return f"{self._records.describe(index)}, label {label:.10g}"

    def fingerprint(self) -> int:
        sample = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(np.int64))
        labels = self.labels(sample).astype("<i8").tobytes()
        places = np.append(self._records.offsets, self._end).astype("<i8").tobytes()
        return zlib.crc32(labels, zlib.crc32(places))

    def prefetch(self, indices: np.ndarray) -> None:
        """Neighbours in the file become one hint (``posix_fadvise``)."""
        indices = np.unique(indices)
        gap_follows = np.append(np.diff(indices) > 1, True)[: len(indices)]
        firsts, lasts = indices[np.roll(gap_follows, 1)], indices[gap_follows]
        offsets = self._records.offsets
        ends = np.where(lasts + 1 < len(offsets), offsets[(lasts + 1) % len(offsets)], self._end)
        for begin, end in zip(offsets[firsts].tolist(), ends.tolist()):
            self._records.file.prefetch(begin, end)
