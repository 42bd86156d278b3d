"""Images in an LMDB environment, of the three kinds that are common.

Its values are image records (``IRHeader``, then the image), the label in the header; or images, whose identity is the
folder in the key, ``identity/name``; or pairs of an image and its label in MessagePack, under keys 0, 1, 2, …, as
imagelist2lmdb.py of SOTA-Face-Recognition-Train-and-Test writes them (its MS1MV2, WebFace4M, Glint360K, HSFace and
VFace). Insightface's records of no image, which have two labels, are left out, and whatever lies under a key that
begins with ``__`` (``__len__``, ``__keys__``); other values are an error.

Where the images lie is found once, and cached beside the file (``<file>.index.npz``).
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import image_suffix
from pipelines.common.log import get_logger
from pipelines.sources.identities import number_labels, number_names, read_identities
from pipelines.sources.index_cache import cached
from pipelines.sources.lmdb_pages import Entry, entries
from pipelines.sources.ranges import RangeReader
from pipelines.sources.recordio import unpack
from pipelines.sources.source import LabelledSource

logger = get_logger(__name__)

_CACHE_VERSION = 1
_HEAD = 64  # bytes of a value that are read to tell what it is, where it has not many labels
_NEITHER = "holds neither an image record, nor an image and its label, nor, as 'identity/name', an image"

_PAIR = 0x92  # MessagePack: an array of two; then the image's length, by the byte before it, and what a number is
_LENGTHS = {code: struct.Struct(form) for code, form in zip(b"\xc4\xc5\xc6\xd9\xda\xdb", (">B", ">H", ">I") * 2)}
_NUMBERS = {code: struct.Struct(f">{form}") for code, form in zip(range(0xCC, 0xD4), "BHIQbhiq")}


class _Image(NamedTuple):
    begin: int  # the byte of the file at which it starts
    length: int
    identity: str | int  # name or class number


class _Index(NamedTuple):
    begins: np.ndarray  # int64 (n,)
    lengths: np.ndarray  # int64 (n,)
    keys: np.ndarray  # bytes (n,)
    labels: np.ndarray  # of the images: int64 (n,), or unicode (n,) where they are names
    empty: int  # records without an image


class LmdbSource(LabelledSource):
    """The images of the LMDB at ``path``, a folder with ``data.mdb`` or the file itself.

    They come in the order of their keys; where all of these are numbers, in that of the numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "data.mdb" if path.is_dir() else path
        self._file = RangeReader(file)
        cache = file.with_name(f"{file.name}.index.npz")
        index = cached(cache, [file], _CACHE_VERSION, _Index, lambda: _find(self._file, path))
        if index.empty:
            logger.warning("%s: %d records without an image are left out", path, index.empty)
        self._begins, self._lengths, self._keys = index.begins, index.lengths, index.keys
        if index.labels.dtype.kind == "U":
            super().__init__(*number_names(index.labels.tolist()))
        else:
            super().__init__(*number_labels(index.labels, read_identities(file.parent), path))

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        lengths = self._lengths[indices]
        data, starts = self._file.gather(self._begins[indices], lengths)
        images = [data[begin:end] for begin, end in zip(starts.tolist(), (starts + lengths).tolist())]
        return images, self._labels[indices]

    def fingerprint(self) -> int:
        places = np.stack([self._begins, self._lengths])
        return zlib.crc32(places.astype("<i8").tobytes(), super().fingerprint())

    def place(self, index: int) -> str:
        return f"{self.path} key {bytes(self._keys[index])!r}"


def _find(file: RangeReader, path: Path) -> _Index:
    """The images of a file, which messages call ``path``."""
    images, keys, empty = list[_Image](), list[bytes](), 0
    for entry in entries(file):
        if entry.key.startswith(b"__"):
            continue
        try:
            image = _look_at(file, entry)
        except ValueError as error:
            raise UserError(f"{path}: key {entry.key[:80]!r} {error}") from None
        if image:
            images.append(image)
            keys.append(entry.key)
        else:
            empty += unpack(file.read(entry.begin, entry.length))[0].flag != 2
    if not images:
        raise UserError(f"{path} holds no images")
    names = sum(isinstance(image.identity, str) for image in images)
    if 0 < names < len(images):
        raise UserError(f"{path} holds both images with labels and images called 'identity/name'")
    order: Sequence[int] = range(len(keys))
    if all(key.isdigit() for key in keys):
        order = sorted(order, key=lambda number: int(keys[number]))
    places = np.array([images[number][:2] for number in order], np.int64)
    labels = np.array([images[number].identity for number in order], np.str_ if names else np.int64)
    return _Index(places[:, 0].copy(), places[:, 1].copy(), np.array([keys[number] for number in order]), labels, empty)


def _look_at(file: RangeReader, entry: Entry) -> _Image | None:
    """The image of an entry; None for a record without one. Raises ``ValueError`` where it is none of the three."""
    head = file.read(entry.begin, min(entry.length, _HEAD)).tobytes()
    if image_suffix(head):
        folder = entry.key.decode(errors="surrogateescape").rpartition("/")[0]
        if not folder:
            raise UserError("has no identity: an image's key should read 'identity/name'")
        return _Image(entry.begin, entry.length, folder)
    return _pair(file, entry, head) or _record(file, entry, head)


def _pair(file: RangeReader, entry: Entry, head: bytes) -> _Image | None:
    """The image of an entry that is a pair in MessagePack, else None."""
    if len(head) < 2 or head[0] != _PAIR or head[1] not in _LENGTHS:
        return None
    form = _LENGTHS[head[1]]
    begin = 2 + form.size
    if len(head) < begin or not image_suffix(head[begin:]):
        return None
    (length,) = form.unpack_from(head, 2)
    rest = entry.length - begin - length
    if not 1 <= rest <= 9:
        return None
    label = _number(file.read(entry.begin + begin + length, rest).tobytes())
    return None if label is None else _Image(entry.begin + begin, length, _class_number(label))


def _number(packed: bytes) -> int | None:
    """The whole number that MessagePack has packed to these bytes, if it is one."""
    if len(packed) == 1:  # a small one is its own byte
        small = int.from_bytes(packed, "big", signed=True)
        return small if small >= -32 else None
    form = _NUMBERS.get(packed[0])
    return form.unpack_from(packed, 1)[0] if form and len(packed) == 1 + form.size else None


def _record(file: RangeReader, entry: Entry, head: bytes) -> _Image | None:
    """The image of an entry that is an image record; None where it holds none."""
    flag = int.from_bytes(head[:4], "little")
    if flag and entry.length > _HEAD:
        head = file.read(entry.begin, min(entry.length, _HEAD + 4 * flag)).tobytes()
    try:
        header, image = unpack(head)
    except ValueError:
        raise UserError(_NEITHER) from None
    if not len(image):
        return None
    if not image_suffix(image):
        raise UserError(_NEITHER)
    begin = len(head) - len(image)
    return _Image(entry.begin + begin, entry.length - begin, _class_number(float(np.ravel(header.label)[0])))


def _class_number(label: float) -> int:
    if not 0 <= label < 1 << 62 or int(label) != label:
        raise UserError(f"has label {label:.10g}, which is no class number")
    return int(label)
