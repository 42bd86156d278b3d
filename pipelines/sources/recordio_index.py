"""Where the images of a ``.rec`` lie: its ``.idx``, checked, completed with the class count, and cached beside it.

An ``.idx`` is text, a line ``key<TAB>byte offset`` for each record. Two layouts are known. In insightface's, record 0
has no image but the labels [first identity record, end]; images are the records 1 to first - 1, sorted by class; the
identity records behind them have no image but the labels [first image, end]. In im2rec's, every record is an image.

Images are numbered in the order in which they lie in the file, whatever the keys and the order of the lines.
"""

import bisect
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.log import get_logger
from pipelines.sources.identities import FILE, are_classes, read_identities
from pipelines.sources.index_cache import cached
from pipelines.sources.recordio import (
    LABEL_LIMIT,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    SMALLEST_RECORD,
    RecordReader,
)
from pipelines.sources.source import all_labels

logger = get_logger(__name__)

_PROBES = 256  # records looked at to tell whether an .idx belongs to its .rec
_CHUNK = 1 << 20  # words at a time where all are gone through
_CACHE_VERSION = 4
_NO_HEADER = "record 0 holds neither an image nor [first identity record, end]"


class RecordIndex(NamedTuple):
    """What has to be known of a ``.rec`` to read its images."""

    offsets: np.ndarray  # int64 (n,), byte offsets of the image records, ascending
    end: int  # the byte at which the record after the last image starts
    num_classes: int
    first_record: int  # records before the first image: 1 in insightface's layout, else 0
    labels: np.ndarray = np.empty(0, np.int64)  # (classes,), what the file calls them; none: by their numbers
    missing: int = 0  # images that record 0 or the .idx announces, or the scan left out


def read_index(rec: str | Path) -> RecordIndex:
    """The index of a ``.rec``, from its ``.idx`` and ``property`` or from the cache ``<name>.cache.npz``.

    An ``.idx`` that is missing or does not belong to the file is replaced by a scan of the file, with a warning; it is
    not overwritten. The class count is the one of ``property``, else the number of identity records, else the names in
    ``identities.json``, else the greatest label + 1; where that leaves great gaps, classes are numbered anew. A cache
    counts while all four files are what they were. Images that are missing are told of at every start.
    """
    rec = Path(rec)
    files = rec, rec.with_suffix(".idx"), rec.with_name("property"), rec.with_name(FILE)
    index = cached(rec.with_suffix(".cache.npz"), files, _CACHE_VERSION, RecordIndex, lambda: _build(rec))
    if index.missing:
        count = len(index.offsets)
        logger.warning("%s: %d images are announced, there are %d", rec, count + index.missing, count)
    return index


def scan(rec: str | Path) -> tuple[np.ndarray, int]:
    """Offsets of all whole records of a file, int64 (n,), ascending, by a search for the magic; how many are left out.

    An aligned magic is always the start of a part, so damage costs only the records it lies in, of which a warning
    tells.
    """
    reader = RecordReader(rec)
    words = reader.size // 4
    starts, heads = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for begin in range(0, words - 1, _CHUNK):
        count = min(_CHUNK, words - 1 - begin)  # and one more, the word behind the last magic
        chunk = reader.file.read(4 * begin, 4 * count + 4).view("<u4")
        found = np.flatnonzero(chunk[:-1] == MAGIC)
        starts.append(begin + found)
        heads.append(chunk[found + 1])
    offsets, head = 4 * np.concatenate(starts), np.concatenate(heads).astype(np.int64)
    kinds, lengths = head >> LENGTH_BITS, head & LENGTH_MASK
    ends = offsets + 8 + lengths
    following = np.append(offsets[1:], reader.size)
    fits = ends <= following
    kept = fits & ((kinds == 0) & (lengths >= SMALLEST_RECORD - 8) | (kinds == 1))
    damaged = int(np.count_nonzero(~kept & (kinds < 2)))
    if damaged:
        logger.warning("%s: %d damaged or truncated records are left out", rec, damaged)
    if not kept.any():
        raise UserError(f"{rec} holds no records: it is no RecordIO file, or an empty one")
    return offsets[kept], damaged


def _build(rec: Path) -> RecordIndex:
    idx = rec.with_suffix(".idx")
    listed = missing = 0
    try:
        offsets = _read_idx(idx)
        listed = len(offsets)
        reader = _open_with(offsets, idx, rec)
    except ValueError as error:
        logger.warning("%s. Searching %s for its records instead", error, rec)
        offsets, left_out = scan(rec)
        reader = RecordReader(rec, offsets)
        missing = max(listed - len(offsets), left_out)
    listed_classes = _read_property(rec.with_name("property"))
    if not _is_range(reader, 0):
        if _has_image(reader, 0) or not _is_range(reader, len(reader) - 1):
            classes, labels = _classes(listed_classes, reader)
            return RecordIndex(offsets, reader.size, classes, 0, labels, missing)
        raise UserError(f"{rec}: {_NO_HEADER}")

    header = np.ravel(reader.unpack(0)[0].label).astype(np.float64)
    last = _first_identity_record(reader, header[0])
    if last == 1:
        raise UserError(f"{rec} holds no images")
    if not 1 < header[0] <= header[1] < np.inf:
        raise UserError(f"{rec}: {_NO_HEADER}")
    rounding = np.spacing(np.float32(header[0])) / 2
    if last - header[0] > rounding:
        logger.warning("%s: %.0f images are announced, there are %d", rec, header[0] - 1, last - 1)
    missing = int(header[0]) - last if header[0] - last > rounding else 0
    identities = int(header[1] - header[0]) if header[1] <= LABEL_LIMIT else len(reader) - last
    if listed_classes and identities and listed_classes != identities:
        logger.warning("%s: 'property' announces %d classes, record 0 %d", rec, listed_classes, identities)
    end = int(offsets[last]) if last < len(reader) else reader.size
    images = offsets[1:last]
    classes, labels = _classes(listed_classes or identities, RecordReader(rec, images, end=end))
    return RecordIndex(images, end, classes, 1, labels, missing)


def _first_identity_record(reader: RecordReader, announced: float) -> int:
    """The number of the record behind the images. ``announced``: the one that record 0 names, as float32 holds it.

    It is believed where a look at it agrees, else sought by bisection. Records that are damaged or hold no image may
    lie anywhere, so only what is surely an image or an identity record decides.
    """
    count = len(reader)
    if 1 < announced < min(count, LABEL_LIMIT) and _is_range(reader, int(announced)):
        first_image = np.ravel(reader.unpack(int(announced))[0].label)[0]
        if first_image == 1:  # as that of the first identity does
            return int(announced)
    if announced == count and not _is_range(reader, count - 1):
        return count

    def behind_images(record: int) -> bool:
        sound = (at for at in range(record, count) if _is_sound(reader, at))
        return (first := next(sound, None)) is not None and _is_range(reader, first)

    return bisect.bisect_left(range(count), True, lo=1, key=behind_images)


def _read_idx(idx: Path) -> np.ndarray:
    """The offsets in an ``.idx``, int64 (n,), ascending. Raises ``ValueError`` if it is missing or holds none."""
    if not idx.is_file():
        raise UserError(f"{idx} is missing")
    try:
        offsets = np.loadtxt(idx, np.int64, comments=None, usecols=1, ndmin=1, encoding="latin1")
    except ValueError as error:
        raise UserError(f"{idx} has a line that is not 'key<TAB>byte offset' ({error})") from None
    if len(offsets) == 0:
        raise UserError(f"{idx} is empty")
    if (np.diff(offsets) <= 0).any():
        offsets = np.unique(offsets)
    return offsets


def _open_with(offsets: np.ndarray, idx: Path, rec: Path) -> RecordReader:
    """All records that an ``.idx`` lists. Raises ``ValueError`` if it does not belong to the ``.rec``."""
    try:
        reader = RecordReader(rec, offsets)
        ends = [reader.end(probe) for probe in np.linspace(0, len(reader) - 1, _PROBES, dtype=np.int64)]
    except ValueError as error:
        raise UserError(f"{idx} does not belong to {rec} ({error})") from None
    if ends[-1] < reader.size:
        raise UserError(f"{idx} ends at byte {ends[-1]} of {rec}, which has {reader.size}")
    return reader


def _is_sound(reader: RecordReader, record: int) -> bool:
    try:
        reader.unpack(record)
    except ValueError:
        return False
    return True


def _has_image(reader: RecordReader, record: int) -> bool:
    return not _is_sound(reader, record) or len(reader.unpack(record)[1]) > 0  # a damaged one: reading it says so


def _is_range(reader: RecordReader, record: int) -> bool:
    """Whether it is like insightface's header and identity records: no image and two labels, [first, end]."""
    if _has_image(reader, record):
        return False
    return reader.unpack(record)[0].flag == 2


def _read_property(path: Path) -> int | None:
    """The class count of a ``property`` file, whose text is ``classes,height,width``; None where there is none."""
    if not path.is_file():
        return None
    text = path.read_text(errors="replace").strip()
    classes = text.split(",")[0].strip()
    if not classes.isdecimal() or int(classes) == 0:
        raise UserError(f"{path} should read 'classes,height,width', not '{text[:40]}'")
    return int(classes)


def _classes(announced: int | None, reader: RecordReader) -> tuple[int, np.ndarray]:
    """The class count, and the labels that classes have in the file where these are not their numbers.

    Without an ``announced`` count it reads the head of every record once.
    """
    own_numbers = np.empty(0, np.int64)
    if announced:
        return announced, own_numbers
    stored = all_labels(reader, np.arange(len(reader)))
    present = np.unique(stored[np.isfinite(stored)])
    if not len(present) or present[-1] < 0:
        raise UserError(f"{reader.path} holds no labels; write their count into the file 'property': classes,112,112")
    count = int(present[-1]) + 1
    if (named := len(read_identities(reader.path.parent))) >= count:
        return named, own_numbers
    wrong = (present < 0) | (present != np.floor(present))  # which record has them is for reading it to say
    labels = present[~wrong].astype(np.int64)
    return (count, own_numbers) if wrong.any() or are_classes(labels, reader.path) else (len(labels), labels)
