"""What a source of images is, and what most sources have in common."""

import os
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import read_file
from pipelines.sources.identities import Identities

_LABELS_AT_A_TIME = _NAMES_AT_A_TIME = 1 << 20


class Source(Protocol):
    """A numbered set of encoded images. ``read`` may be called from several threads."""

    num_classes: int
    missing: int  # images that the files announce and do not hold
    shortage: str  # which file is short, and what to do about it; empty where nothing is missing

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

    def fingerprint(self) -> int:
        """32 bits that tell this data set from another of the same size, by what is known without reading images."""

    def prefetch(self, indices: np.ndarray) -> None:
        """Hint that these images will be read soon."""


class Labelled(Protocol):
    """What has labels by index, as `Source` has."""

    def labels(self, indices: np.ndarray) -> np.ndarray: ...


def all_labels(source: Labelled, indices: np.ndarray) -> np.ndarray:
    """The labels (n,) of any number of images, asked for in pieces: what a reader needs for a call grows with it."""
    pieces = np.split(indices, range(_LABELS_AT_A_TIME, len(indices), _LABELS_AT_A_TIME))
    return np.concatenate([source.labels(piece) for piece in pieces])


def labels_by_name(source: Source) -> dict[str, int]:
    """The label of each identity of ``source`` by its name."""
    return {source.identity(label): label for label in range(source.num_classes)}


class LabelledSource:
    """The base of sources that know all labels, int64 (n,), from the start: they add ``read`` and ``place``."""

    missing = 0
    shortage = ""

    def __init__(self, identities: Identities, labels: np.ndarray) -> None:
        self.num_classes = identities.count
        self._identities = identities
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def place(self, index: int) -> str:
        """Where an image lies, for messages."""
        raise NotImplementedError

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        return self.place(index) + (f", label {self._labels[index]}" if self.num_classes else "")

    def fingerprint(self) -> int:
        return zlib.crc32(self._labels.astype("<i8").tobytes(), len(self))

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: few readers can give a hint without waiting for the disk themselves."""


class FileSource(LabelledSource):
    """The base of sources whose images are files of their own: ``place`` is the path.

    ``names``: of the files, relative to the data set, or absolute; the folder that these have in common does not count.
    """

    def __init__(self, identities: Identities, labels: np.ndarray, names: Sequence[str]) -> None:
        super().__init__(identities, labels)
        self._names = names

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = [read_file(self.place(index)) for index in indices]
        for index, image in zip(indices, encoded):
            if not len(image):
                raise UserError(f"{self.place(index)} is empty")
        return encoded, self._labels[indices]

    def fingerprint(self) -> int:
        found = super().fingerprint()
        absolute = [name for name in self._names if name.startswith("/")]
        common = os.path.commonpath([min(absolute), max(absolute)]) if absolute else ""
        for names in (self._identities.names, self._names):
            for begin in range(0, len(names), _NAMES_AT_A_TIME):
                text = "\n".join([*(name.removeprefix(common) for name in names[begin : begin + _NAMES_AT_A_TIME]), ""])
                found = zlib.crc32(text.encode(errors="surrogatepass"), found)
        return found
