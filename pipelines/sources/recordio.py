"""RecordIO, the file format of MXNet's face data sets (``train.rec``): records, their image headers, reading.

A file is a row of parts, each aligned to four bytes (dmlc-core, ``recordio.h``)::

    uint32 magic 0xced7230a | uint32: 3 bits kind, 29 bits length | length bytes | zeros up to a multiple of four

A record is one part (kind 0), unless the magic occurs in it at a multiple of four: there it is cut, the magic left
out, and the pieces become parts of kind 1 (first), 2 (middle) and 3 (last). So an aligned magic always starts a part.

An image record begins with ``IRHeader`` (24 bytes, ``IfQQ``); with ``flag > 0`` that many float32 labels follow. The
encoded image is the rest. Labels are float32 in the file, exact for whole numbers to 2^24.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipelines.common.errors import UserError
from pipelines.sources.ranges import RangeReader

MAGIC = 0xCED7230A
LABEL_LIMIT = 1 << 24  # whole numbers up to here are exact in float32

_MAGIC = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
SMALLEST_RECORD = _PART.size + _HEADER.size  # bytes in the file of an image record without labels and image
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_AT_ONCE = 1 << 18  # bytes read of a record before it is known how long it is: an .idx may have gaps

Record = TypeVar("Record", bytes, memoryview, np.ndarray)


class IRHeader(NamedTuple):
    """What precedes an image in its record."""

    flag: int  # number of float32 labels that follow; 0: the one label is in ``label``
    label: float | Sequence[float] | np.ndarray
    id: int  # the record's key in the ``.idx``, as a rule
    id2: int = 0


def pack(header: IRHeader, payload: bytes | np.ndarray) -> bytes:
    """A record of ``payload`` behind ``header``, whose ``flag`` is set: 0 for one label, the count for a sequence.

    Raises ``ValueError`` for a whole number that float32 does not hold exactly.
    """
    if isinstance(header.label, int) and abs(header.label) <= LABEL_LIMIT:  # nearly all; five times as quick
        return b"".join((_HEADER.pack(0, header.label, header.id, header.id2), bytes(payload)))
    label = np.asarray(header.label, dtype=np.float64)
    stored = label.astype("<f4")
    if (inexact := (np.round(label) == label) & (stored != label)).any():
        wrong = label[inexact].flat[0]
        raise UserError(f"label {wrong:.0f} cannot be kept: RecordIO has float32 labels, exact to {LABEL_LIMIT}")
    if label.ndim == 0:
        return b"".join((_HEADER.pack(0, float(stored), header.id, header.id2), bytes(payload)))
    return b"".join((_HEADER.pack(label.size, 0.0, header.id, header.id2), stored.tobytes(), bytes(payload)))


def unpack(record: Record) -> tuple[IRHeader, Record]:
    """The header and the payload of a record. With ``flag > 0`` the label is a float32 array ``(flag,)``.

    ``record`` may also be a uint8 array or a memoryview; the payload is then a view of it.
    """
    if len(record) < _HEADER.size:
        raise UserError(f"a record of {len(record)} bytes is too short for an image header ({_HEADER.size} bytes)")
    header = IRHeader(*_HEADER.unpack(bytes(record[: _HEADER.size])))
    begin = _HEADER.size + 4 * header.flag
    if header.flag == 0:
        return header, record[begin:]
    if len(record) < begin:
        raise UserError(f"a record of {len(record)} bytes is too short for the {header.flag} labels it announces")
    return header._replace(label=np.frombuffer(record[_HEADER.size : begin], "<f4")), record[begin:]


def split(record: bytes) -> bytes:
    """The parts of a record as they stand in a file: heads, pieces and padding."""
    if len(record) > LENGTH_MASK:
        raise UserError(f"a record of {len(record)} bytes is too long: RecordIO takes less than {LENGTH_MASK + 1}")
    parts: list[bytes] = []
    begin, kind = 0, _FIRST
    aligned = len(record) & ~3
    at = record.find(_MAGIC, 0, aligned)
    while at >= 0:
        if at % 4 == 0:
            parts += _PART.pack(MAGIC, kind << LENGTH_BITS | at - begin), record[begin:at]
            begin, kind = at + 4, _MIDDLE
        at = record.find(_MAGIC, at + 4 if at % 4 == 0 else at + 1, aligned)
    kind = _LAST if begin else _WHOLE
    length = len(record) - begin
    parts += _PART.pack(MAGIC, kind << LENGTH_BITS | length), record[begin:], bytes(-length % 4)
    return b"".join(parts)


def _padded(position: int) -> int:
    return position + 3 & ~3


class RecordReader:
    """The image records of a file at the given byte offsets, by their index.

    Nothing is read before it is asked for. Any bytes are safe to read: what is not an image record, or can be read no
    more, raises ``ValueError`` or ``OSError`` naming the file, the record and its offset.
    """

    def __init__(
        self, path: str | Path, offsets: np.ndarray | None = None, first_record: int = 0, end: int | None = None
    ) -> None:
        """``offsets``: int64 (n,), ascending, where records start; the last one reaches to ``end``, at most.

        ``first_record``: the number of the first in messages.
        """
        self.path = Path(path)
        self.file = RangeReader(self.path)
        self.size = self.file.size
        if self.size < SMALLEST_RECORD:
            raise UserError(f"{self.path} is no RecordIO file of images: it has {self.size} bytes")
        self.first_record = first_record
        self.offsets = np.empty(0, np.int64)
        if offsets is not None and len(offsets):
            bad = np.flatnonzero((offsets < 0) | (offsets > self.size - SMALLEST_RECORD) | (offsets & 3 != 0))
            self.offsets = np.ascontiguousarray(offsets, np.int64)
            if len(bad):
                raise self.error(bad[0], f"no record can start there in a file of {self.size} bytes")
        self._ends = np.append(self.offsets[1:], min(end or self.size, self.size))

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The payloads, uint8 (bytes,), not to be written to, and the first label of each, float32 (b,)."""
        offsets = self.offsets[indices]
        lengths = np.clip(self._ends[indices] - offsets, SMALLEST_RECORD, _AT_ONCE)
        try:
            data, starts = self.file.gather(offsets, lengths)
        except (OSError, ValueError):
            return self._read_singly(indices)  # to blame one of them
        begins, ends, labels, sound = _locate(data, starts, lengths)
        payloads = [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist())]
        others = np.flatnonzero(~sound)  # long ones, those of several parts, and records to blame
        for at, payload, label in zip(others, *self._read_singly(indices[others])):
            payloads[at], labels[at] = payload, label
        return payloads, labels

    def _read_singly(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        records = [self.unpack(int(index)) for index in indices]
        labels = [np.ravel(header.label)[0] for header, _ in records]
        return [payload for _, payload in records], np.array(labels, np.float32)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The first label of each record, float32 (b,); NaN where it is damaged."""
        offsets = self.offsets[indices]
        try:
            heads, starts = self.file.gather(offsets, np.minimum(self.size - offsets, SMALLEST_RECORD + 4))
            _, _, labels, sound = _locate(heads, starts, self._ends[indices] - offsets)
        except (ValueError, OSError):
            labels, sound = np.empty(len(indices), np.float32), np.zeros(len(indices), np.bool_)
        for at in np.flatnonzero(~sound):
            try:
                labels[at] = np.ravel(self.unpack(int(indices[at]))[0].label)[0]
            except (ValueError, OSError):
                labels[at] = np.nan
        return labels

    def record(self, index: int) -> np.ndarray:
        """One whole record (header and payload), uint8 (bytes,), its parts joined."""
        first, *rest = (self.file.read(begin, end - begin) for begin, end in self._parts(index))
        if not rest:
            return first
        magic = np.frombuffer(_MAGIC, np.uint8)
        return np.concatenate([first, *(piece for part in rest for piece in (magic, part))])

    def end(self, index: int) -> int:
        """The byte at which a record ends, padding included."""
        return min(_padded(self._parts(index)[-1][1]), self.size)

    def unpack(self, index: int) -> tuple[IRHeader, np.ndarray]:
        """Header and payload, uint8 (bytes,), of one record."""
        record = self.record(index)
        try:
            return unpack(record)
        except ValueError as error:
            raise self.error(index, str(error)) from None

    def describe(self, index: int) -> str:
        return f"{self.path.name} record {self.first_record + index} at byte {self.offsets[index]}"

    def _parts(self, index: int) -> list[tuple[int, int]]:
        """Where the pieces of a record begin and end."""
        offset, limit = int(self.offsets[index]), int(self._ends[index])
        parts: list[tuple[int, int]] = []
        while True:
            if offset + _PART.size > limit:
                raise self.error(index, f"there is no part of a record at byte {offset}")
            magic, head = _PART.unpack(self.file.read(offset, _PART.size).tobytes())
            if magic != MAGIC:
                raise self.error(index, f"there is no part of a record at byte {offset}")
            kind, length = head >> LENGTH_BITS, head & LENGTH_MASK
            if kind not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
                raise self.error(index, f"a part of kind {kind} is out of place at byte {offset}")
            begin = offset + _PART.size
            if begin + length > limit:
                past = f"start of the next, byte {limit}"
                if begin + length > self.size:
                    past = f"end of the file ({self.size} bytes)"
                raise self.error(index, f"its {length} bytes reach past the {past}")
            parts.append((begin, begin + length))
            if kind in (_WHOLE, _LAST):
                return parts
            offset = _padded(begin + length)

    def error(self, index: int, reason: str) -> ValueError:
        """A ``ValueError`` that says which record is wrong."""
        return UserError(f"{self.path.parent / self.describe(index)}: {reason}")


def _locate(
    data: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of records that start in ``data`` at multiples of four and have up to ``lengths`` bytes, each int64 (b,).

    Returns where payloads begin and end (int64), first labels (float32), which are sound records of one part (bool).
    """
    words = data[: len(data) & ~3].view("<u4")
    heads = words[(starts >> 2)[:, None] + np.arange(4)]  # magic, kind and length, flag, label
    magic, sizes, flags = heads.T[:3].astype(np.int64)
    labels = heads[:, 3].copy().view("<f4")
    begins = starts + (SMALLEST_RECORD + 4 * flags)
    ends = starts + (_PART.size + sizes)
    sound = (magic == MAGIC) & (sizes <= LENGTH_MASK) & (begins <= ends) & (ends <= starts + lengths)
    several = np.flatnonzero(sound & (flags > 0))
    labels[several] = words[(starts[several] + SMALLEST_RECORD) >> 2].view("<f4")
    return begins, ends, labels, sound
