"""Arrow files of images as Hugging Face's ``datasets`` saves them: ``save_to_disk``, and its cache.

A file is a row of messages: eight bytes with the length of the head, the head, the body. The first is the schema; each
of the others has some rows, whose images lie in its body one behind the other, uncompressed (Arrow's streaming format;
the file format is the same between eight bytes and an index). So an image is read by offset like those of other
formats. To find the offsets pyarrow gets every message with a body of zeros, and of that only the parts that are looked
at are read.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.common.errors import UserError
from pipelines.sources.columns import class_names, find_columns, load_pyarrow, number, read_labels, reading
from pipelines.sources.range_source import RangeSource
from pipelines.sources.ranges import RangeReader

_START = struct.Struct("<II")  # of a message: 2^32 - 1, bytes of its head
_MARK = 0xFFFFFFFF
_MAGIC = b"ARROW1\0\0"  # of the file format
_BODY_LENGTH = 3  # the number of this field in a head


class _Message(NamedTuple):
    begin: int  # the byte of the file at which it starts
    content: np.ndarray  # uint8, head and body, zeros for the latter

    def position(self, buffer: Any) -> int:
        """The byte of the file at which a buffer of the message starts."""
        return self.begin + buffer.address - self.content.ctypes.data

    def fill(self, buffer: Any, file: RangeReader) -> None:
        """Read the bytes of a buffer."""
        at = buffer.address - self.content.ctypes.data
        self.content[at : at + buffer.size] = file.read(self.begin + at, buffer.size)


class ArrowSource(RangeSource):
    """The images of Arrow files, in the order of the files and within them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        load_pyarrow()
        begins, lengths, labels, names = zip(*map(_find, paths))
        if not any(map(len, begins)):
            raise UserError(f"{paths[0]} holds no images")
        pieces = [piece for of_file in labels for piece in of_file]
        super().__init__(*number(pieces, names[0], paths[0].parent), paths, begins, lengths)

    def place(self, index: int) -> str:
        file = int(self._files(index))
        return f"{self._paths[file].name} row {int(index) - (int(self._ends[file - 1]) if file else 0)}"


def saved_files(folder: Path) -> list[Path]:
    """The files of a data set that was saved to ``folder``, or of its split ``train`` where it has several; or none.

    Raises ``UserError`` where one is missing.
    """
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    try:
        if splits.is_file():
            names = list(map(str, json.loads(splits.read_text())["splits"]))
            if len(names) > 1 and "train" not in names:
                raise UserError(f"{folder} has the splits {', '.join(names)}: name the folder of one")
            return saved_files(folder / ("train" if "train" in names else names[0]))
        if not state.is_file():
            return []
        files = [folder / str(entry["filename"]) for entry in json.loads(state.read_text())["_data_files"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} is no sound folder of save_to_disk ({error}); copy it again") from None
    if missing := [path for path in files if path.suffix != ".arrow" or not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: copy {folder} again")
    return files


def _find(path: Path) -> tuple[np.ndarray, np.ndarray, list[np.ndarray | list[str]], list[str]]:
    """Where a file's images begin, int64 (n,), their lengths, int64 (n,), their labels in pieces, and known names."""
    import pyarrow

    file = RangeReader(path)
    begins, lengths, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    schema = None
    for message in _messages(file):
        with reading(path, "Arrow"):
            read = pyarrow.ipc.read_message(pyarrow.py_buffer(message.content))
            if schema is None:
                schema = pyarrow.ipc.read_schema(read)
        if read.type == "schema":
            image, label = find_columns(schema, path)
            continue
        with reading(path, "Arrow"):
            rows = pyarrow.ipc.read_record_batch(read, schema)
            rows.validate()  # that the parts have the sizes that the numbers of rows ask for
            if not rows.num_rows:
                continue
            own, column = rows.column(schema.names.index(image)), rows.column(schema.names.index(label))
            values = own.field("bytes") if own.type.num_fields else own
            for buffer in (values.buffers()[1], *column.buffers()):
                if buffer:
                    message.fill(buffer, file)
            values.validate()
            column.validate(full=True)
            ends = _offsets(values)
            if (np.diff(ends) < 0).any():
                raise ValueError("an image ends before it begins")
            labels.append(read_labels(pyarrow.chunked_array([column]), f"{path}, column '{label}'"))
        begins.append((message.position(values.buffers()[2]) if ends[-1] else 0) + ends[:-1])
        lengths.append(np.diff(ends))
    if schema is None:
        raise UserError(f"{path} is no sound Arrow file: it has no schema")
    return np.concatenate(begins), np.concatenate(lengths), labels, class_names(schema, label)


def _offsets(values: Any) -> np.ndarray:
    """Where binary values end in their bytes, int64 (n + 1,), 0 first."""
    import pyarrow

    wide = pyarrow.types.is_large_binary(values.type)
    return np.frombuffer(values.buffers()[1], np.int64 if wide else np.int32)[: len(values) + 1].astype(np.int64)


def _messages(file: RangeReader) -> Iterator[_Message]:
    """The messages of a file, their bodies as zeros. Raises ``UserError`` where it is none, or cut short."""
    at = len(_MAGIC) if file.size > len(_MAGIC) and file.read(0, len(_MAGIC)).tobytes() == _MAGIC else 0
    while at + _START.size <= file.size:
        mark, length = _START.unpack(file.read(at, _START.size).tobytes())
        if mark != _MARK:
            raise UserError(f"{file.path} is no sound Arrow file: no message begins at byte {at}")
        if not length:
            return
        head = _START.size + length
        if at + head > file.size:
            break
        start = file.read(at, head)
        try:
            body = _body_length(start[_START.size :].tobytes())
        except struct.error:
            body = -1
        if body < 0:
            raise UserError(f"{file.path} is damaged at byte {at}: copy it again")
        if at + head + body > file.size:
            break
        content = np.zeros(head + body, np.uint8)
        content[:head] = start
        yield _Message(at, content)
        at += head + body
    raise UserError(f"{file.path} is cut short: the mark of its end is missing; copy it again")


def _body_length(head: bytes) -> int:
    """Bytes of the body of the message that begins so: a field of a FlatBuffers table. Raises ``struct.error``."""
    (table,) = struct.unpack_from("<I", head)
    (back,) = struct.unpack_from("<i", head, table)
    if table < back:
        raise struct.error
    (size,) = struct.unpack_from("<H", head, table - back)
    if size < 4 + 2 * (_BODY_LENGTH + 1):
        return 0
    (field,) = struct.unpack_from("<H", head, table - back + 4 + 2 * _BODY_LENGTH)
    return struct.unpack_from("<q", head, table + field)[0] if field else 0
