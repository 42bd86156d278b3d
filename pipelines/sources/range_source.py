"""What sources have in common whose images are ranges of bytes in several files."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.sources.identities import Identities
from pipelines.sources.ranges import RangeReader
from pipelines.sources.source import LabelledSource

_OPEN = 256  # files that are open at a time


class RangeSource(LabelledSource):
    """The base of sources whose images lie in the files ``paths``, in the order of these: they add ``place``.

    Args:
        begins: of each file, the byte at which each of its images begins, int64 (n,).
        lengths: of each file, the bytes of each of its images, int64 (n,).
    """

    def __init__(
        self,
        identities: Identities,
        labels: np.ndarray,
        paths: Sequence[Path],
        begins: Sequence[np.ndarray],
        lengths: Sequence[np.ndarray],
    ) -> None:
        super().__init__(identities, labels)
        self._paths = list(paths)
        self._begins, self._lengths = np.concatenate(begins), np.concatenate(lengths)
        self._ends = np.cumsum([len(images) for images in begins])  # of each file, the number of the next one's first
        self._open = lru_cache(_OPEN)(lambda number: RangeReader(self._paths[number]))

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = []
        for index, file in zip(indices, self._files(indices).tolist()):
            length = int(self._lengths[index])
            if not length:
                raise UserError(f"{self._paths[file].parent / self.describe(index)} has no bytes")
            encoded.append(self._open(file).read(int(self._begins[index]), length))
        return encoded, self._labels[indices]

    def fingerprint(self) -> int:
        places = np.stack([self._begins, self._lengths])
        return zlib.crc32(places.astype("<i8").tobytes(), super().fingerprint())

    def _files(self, indices: np.ndarray | int) -> np.ndarray:
        """The numbers of the files in which these images lie."""
        return np.searchsorted(self._ends, indices, side="right")
