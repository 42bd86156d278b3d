"""Sources of encoded images with labels. Here: RecordIO files, image folders, memory; others in files of their own."""

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.files import IMAGE_SUFFIXES, read_file
from pipelines.identities import Identities, read_identities
from pipelines.index import read_index
from pipelines.lists import open_list
from pipelines.lmdbs import LmdbSource
from pipelines.parquet import ParquetSource
from pipelines.recordio import LABEL_LIMIT, RecordReader
from pipelines.shards import ShardSource

logger = logging.getLogger(__name__)


class Source(Protocol):
    """A numbered set of encoded images. ``read`` may be called from several threads."""

    num_classes: int

    def __len__(self) -> int:
        """Images."""

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Encoded images, each uint8 (bytes,) and not to be written to, and their labels, int64 (b,), as stored.

        Raises ``ValueError`` or ``OSError`` naming the first image that cannot be read; then read them one by one.
        """

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The labels that ``read`` would give, int64 (b,), without reading the images; -1 where one is damaged."""

    def identity(self, label: int) -> str:
        """The name of a class; its number where it has none."""

    def describe(self, index: int) -> str:
        """Where an image comes from, for messages. Never raises for an index below ``len``."""

    def prefetch(self, indices: np.ndarray) -> None:
        """Hint that these images will be read soon."""


_KINDS = "train.rec, identity/*.jpg, *.tar, *.parquet or data.mdb"


def open_source(path: str | Path) -> Source:
    """The images at ``path``: a folder with one of _KINDS, a file of such a kind, a list (.lst, .txt), or a glob."""
    path = Path(path)
    if path.is_file():
        return _open_files([path])
    if not path.is_dir():
        if matches := sorted(map(Path, glob.glob(str(path)))):  # noqa: PTH207  Path.glob takes no absolute pattern
            return _open_files(matches)
        raise FileNotFoundError(f"there is no data set at {path}")
    if (path / "train.rec").is_file():
        return RecordSource(path / "train.rec")
    if records := sorted(path.glob("*.rec")):
        raise ValueError(f"{path} has no train.rec; name the file that is meant: {', '.join(map(str, records[:5]))}")
    if (path / "data.mdb").is_file():
        return LmdbSource(path)
    for pattern in ("*.tar", "*.parquet"):
        if files := sorted(path.glob(pattern)):
            return _open_files(files)
    return FolderSource(path)


def _open_files(paths: list[Path]) -> Source:
    """The images of one file, or of several shards of a kind."""
    kinds = {path.suffix for path in paths}
    if kinds == {".tar"}:
        return ShardSource(paths)
    if kinds == {".parquet"}:
        return ParquetSource(paths)
    if len(paths) == 1:
        path = paths[0]
        if path.suffix == ".rec":
            return RecordSource(path)
        if path.suffix in (".lst", ".txt"):
            return open_list(path)
        if path.suffix in (".mdb", ".lmdb"):
            return LmdbSource(path)
    raise ValueError(f"{paths[0]} is no data set: give a .rec file, a list (.lst, .txt), or a folder with {_KINDS}")


class RecordSource:
    """The images of a RecordIO file. Nothing is kept of an image but its offset; labels are read with the images."""

    def __init__(self, rec: str | Path) -> None:
        index = read_index(rec)
        if index.num_classes > LABEL_LIMIT:
            logger.warning("%s: RecordIO's float32 labels tell only %d classes apart surely", rec, LABEL_LIMIT)
        self.num_classes = index.num_classes
        self._identities = Identities(index.num_classes, read_identities(Path(rec).parent))
        self._records = RecordReader(rec, index.offsets, index.first_record)
        self._end = index.end

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded, stored = self._records.read(indices)
        with np.errstate(invalid="ignore"):  # NaN and what int64 cannot hold
            labels = stored.astype(np.int64)
        for wrong in np.flatnonzero(labels != stored):
            raise self._records.error(indices[wrong], f"label {stored[wrong]:.10g} is no class number")
        if not all(map(len, encoded)):
            empty = next(index for index, image in zip(indices, encoded) if not len(image))
            raise self._records.error(empty, "the record holds no image")
        return encoded, labels

    def labels(self, indices: np.ndarray) -> np.ndarray:
        stored = self._records.labels(indices)
        whole = np.isfinite(stored) & (stored == np.floor(stored)) & (abs(stored) < 2**62)
        return np.where(whole, stored, -1).astype(np.int64)

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        try:
            label = np.ravel(self._records.unpack(index)[0].label)[0]
        except ValueError:
            return self._records.describe(index)
        return f"{self._records.describe(index)}, label {label:.10g}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Neighbours in the file become one hint (``posix_fadvise``)."""
        indices = np.unique(indices)
        gap_follows = np.append(np.diff(indices) > 1, True)[: len(indices)]
        firsts, lasts = indices[np.roll(gap_follows, 1)], indices[gap_follows]
        offsets = self._records.offsets
        ends = np.where(lasts + 1 < len(offsets), offsets[(lasts + 1) % len(offsets)], self._end)
        for begin, end in zip(offsets[firsts].tolist(), ends.tolist()):
            self._records.prefetch(begin, end)


class FolderSource:
    """A folder ``root/identity/image``. Classes are the identities that have images, in sorted order of their names.

    Only that one level is looked at. Names that begin with a dot are left out.
    """

    def __init__(self, root: str | Path) -> None:
        self._identities: list[str] = []
        self._names: list[str] = []
        counts: list[int] = []
        with os.scandir(root) as entries:
            folders = sorted((entry.name, entry.path) for entry in entries if not entry.name.startswith("."))
        for _, folder in folders:
            if not os.path.isdir(folder):  # noqa: PTH112  unlike DirEntry.is_dir and Path.is_dir it bears symlink loops
                continue
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.name[0] != ".")
            if names:
                self._identities.append(folder)
                self._names += names
                counts.append(len(names))
        if not counts:
            raise ValueError(f"{root} holds neither train.rec nor identity/*.jpg (or {', '.join(IMAGE_SUFFIXES[1:])})")
        self.num_classes = len(counts)
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = [read_file(self._path(index)) for index in indices]
        for index, image in zip(indices, encoded):
            if not len(image):
                raise ValueError(f"{self._path(index)} is empty")
        return encoded, self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return os.path.basename(self._identities[label])  # noqa: PTH119  a str: there may be millions

    def describe(self, index: int) -> str:
        return f"{self._path(index)}, label {self._labels[index]}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: to hint at a file one has to open it, which waits for the disk."""

    def _path(self, index: int) -> str:
        return f"{self._identities[self._labels[index]]}/{self._names[index]}"


class MemorySource:
    """Images in memory, such as those of a ``.bin`` set. Without labels every image has -1, no class.

    Messages call the images by ``name``, which is best the file that they come from.
    """

    def __init__(
        self, encoded: Sequence[bytes | np.ndarray], labels: np.ndarray | None = None, name: str = "memory"
    ) -> None:
        self._encoded, self._name, self._labelled = encoded, name, labels is not None
        self._labels = np.full(len(encoded), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
        if len(self._labels) != len(encoded):
            raise ValueError(f"{len(encoded)} images with {len(self._labels)} labels")
        self.num_classes = int(self._labels.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self._encoded)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [np.frombuffer(self._encoded[index], np.uint8) for index in indices], self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return str(label)

    def describe(self, index: int) -> str:
        return f"{self._name}, image {index}" + (f", label {self._labels[index]}" if self._labelled else "")

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: the images are here."""
