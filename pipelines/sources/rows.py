"""A ``.npy`` file of which rows are read by offset (`pipelines.sources.ranges` says why it is not mapped)."""

import io
import math
from pathlib import Path

import numpy as np

from pipelines.sources.ranges import RangeReader

_HEADER = 256  # bytes in which the header of a file of few axes ends


class RowFile:
    """An array in a file, open.

    Raises ``ValueError`` where the file is none of numpy's.

    Attributes:
        shape, dtype: of the array.
        in_rows: whether its rows, not its columns, lie one behind the other; only then it can be read.
        whole: whether the file has as many bytes as it says.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RangeReader(path)
        header = io.BytesIO(self._reader.read(0, min(_HEADER, self._reader.size)).tobytes())
        try:
            np.lib.format.read_magic(header)
            self.shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(header)
        except Exception as error:  # a damaged one ends in almost any class
            raise ValueError(f"{path} has no sound .npy header ({error})") from None
        self._start = header.tell()
        self.in_rows = not fortran
        self.whole = self._reader.size == self._start + self.dtype.itemsize * math.prod(self.shape)

    def read(self, *place: int) -> np.ndarray:
        """What lies at these indices of the first axes."""
        inner = self.shape[len(place) :]
        length = self.dtype.itemsize * math.prod(inner)
        number = 0
        for index, size in zip(place, self.shape):
            number = number * size + index
        return self._reader.read(self._start + number * length, length).view(self.dtype).reshape(inner)
