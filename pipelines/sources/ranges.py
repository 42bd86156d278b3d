"""Files of which pieces are read by offset.

They are read, not mapped: where a mapped file has shrunk, or the disk cannot read it, the kernel ends the process at
the first touch, without a word. A read is an error that names the file, and costs an image one copy of its bytes.
"""

import os
import weakref
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError


class RangeReader:
    """A file, open for reads of ranges of bytes, also from several threads. ``size``: bytes when it was opened.

    Reads raise ``OSError`` or ``ValueError`` naming file and byte: the former if the disk fails, the latter where the
    file has become shorter.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, begin: int, length: int) -> np.ndarray:
        """``length`` bytes from ``begin``, uint8 (length,), not to be written to."""
        try:
            content = os.pread(self._descriptor, length, begin)
        except OSError as error:
            raise self._failed(error, begin) from None
        if len(content) < length:
            content += self._rest(begin + len(content), length - len(content))
        return np.frombuffer(content, np.uint8)

    def gather(self, begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Several ranges in one buffer, uint8 (bytes,), not to be written to, and where each starts there, int64 (n,).

        They start at multiples of four.
        """
        ends = np.cumsum(lengths + 3 & ~3)
        starts = ends - (lengths + 3 & ~3)
        buffer = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        view, read, descriptor = buffer.data, os.preadv, self._descriptor
        try:
            for start, length, begin in zip(starts.tolist(), lengths.tolist(), begins.tolist()):
                count = read(descriptor, [view[start : start + length]], begin)
                if count < length:
                    view[start + count : start + length] = self._rest(begin + count, length - count)
        except OSError as error:
            raise self._failed(error, begin) from None
        buffer.flags.writeable = False
        return buffer, starts

    def prefetch(self, begin: int, end: int) -> None:
        """Tell the kernel that the bytes from ``begin`` to ``end`` will be read soon."""
        os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _rest(self, begin: int, length: int) -> bytes:
        """What a read has left to read; most often the file has none."""
        content = b""
        while len(content) < length:
            piece = os.pread(self._descriptor, length - len(content), begin + len(content))
            if not piece:
                raise UserError(f"{self.path} ends at byte {begin + len(content)}: it was cut off; copy it again")
            content += piece
        return content

    def _failed(self, error: OSError, begin: int) -> OSError:
        return OSError(error.errno, error.strerror, f"{self.path} from byte {begin}")
