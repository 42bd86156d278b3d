"""RecordIO written: records one by one, and data sets in insightface's layout."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import replacing
from pipelines.sources.recordio import LABEL_LIMIT, IRHeader, pack, split

_BUFFER = 1 << 20  # bytes: a call of the kernel for each record would take as long as all the rest of writing it


class RecordWriter:
    """Writes ``.rec`` and ``.idx`` as ``mxnet.recordio.MXIndexedRecordIO`` does, byte for byte.

    Both appear under their names when the ``with`` block ends well, neither when it does not.
    """

    def __init__(self, rec: str | Path) -> None:
        self.rec = Path(rec)
        self.idx = self.rec.with_suffix(".idx")

    def __enter__(self) -> "RecordWriter":
        with ExitStack() as stack:
            # Entered first is renamed last: an .idx without its .rec would be the worse half.
            self._idx = stack.enter_context(stack.enter_context(replacing(self.idx)).open("w"))
            self._rec = stack.enter_context(stack.enter_context(replacing(self.rec)).open("wb", _BUFFER))
            self._stack = stack.pop_all()
        self._end = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, key: int, record: bytes) -> None:
        """Append a record (see ``pack``) under ``key``."""
        parts = split(record)
        self._rec.write(parts)
        self._idx.write(f"{key}\t{self._end}\n")
        self._end += len(parts)

    def overwrite_first(self, record: bytes) -> None:
        """Put a record of the same length in the place of the first one, for what is known only at the end."""
        self._rec.seek(0)
        self._rec.write(split(record))
        self._rec.seek(self._end)


def write_dataset(
    folder: str | Path,
    identities: Iterable[Iterable[bytes | np.ndarray]],
    *,
    name: str = "train",
    image_size: int = 112,
) -> tuple[int, int]:
    """Write encoded images as ``<name>.rec``, ``<name>.idx`` and ``property`` in insightface's layout.

    ``identities`` yields the images of one identity after the other; they become the classes 0, 1, … No image is kept
    once it is written. Returns the counts of identities and images.

    Raises ``ValueError`` beyond 2^24 records, because this layout keeps record numbers as labels; a ``RecordWriter``
    without header and identity records (im2rec's layout) has no such limit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "property") as property_, RecordWriter(folder / f"{name}.rec") as writer:
        writer.write(0, pack(IRHeader(2, [0, 0], 0), b""))
        firsts = [1]
        for label, images in enumerate(identities):
            key = firsts[-1]
            for image in images:
                if not len(image):
                    raise UserError(f"image {key} (class {label}) is empty")
                writer.write(key, pack(IRHeader(0, label, key), image))
                key += 1
            if key == firsts[-1]:
                raise UserError(f"class {label} has no images")
            if key + label + 1 > LABEL_LIMIT:
                raise UserError(f"insightface's layout numbers at most {LABEL_LIMIT} records; write im2rec's instead")
            firsts.append(key)
        end = firsts[-1]
        for key, (first, last) in enumerate(zip(firsts, firsts[1:]), end):
            writer.write(key, pack(IRHeader(2, [first, last], key), b""))
        count = len(firsts) - 1
        writer.overwrite_first(pack(IRHeader(2, [end, end + count], 0), b""))
        property_.write_text(f"{count},{image_size},{image_size}")
    return count, end - 1
