"""``.bin`` verification sets (LFW, CFP-FP, AgeDB-30, …): a pickle of (2P encoded images, P flags: the same person?).

They come as Python 2 and Python 3 pickles. Images are ``bytes``, ``bytearray``, numpy's ``bytes_`` or uint8 arrays;
flags are booleans or the numbers 0 and 1, of Python or numpy; both are in a list or an array. A pickle can run any code
when it is loaded, so they are read with stand-ins for the few names that such data needs, and any other name is
refused. Numpy's own classes are not used either: forged pickles can make them read foreign memory.

``.xz`` sets (Hadrian, Eclipse, ND-Twins) are the same pickle, packed by LZMA. Images hardly shrink by it, so what grows
to many times its size is no set, and is not unpacked.
"""

import io
import lzma
import pickle
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import replacing


@dataclass(frozen=True)
class BinSet:
    """Images 2i and 2i + 1 are pair i."""

    encoded: list[bytes]  # (2P)
    same: np.ndarray  # bool (P,)


def read_bin(path: str | Path) -> BinSet:
    """Read a ``.bin`` or ``.xz`` set. Raises ``ValueError`` naming the file where it is anything else."""
    content = Path(path).read_bytes()
    if Path(path).suffix == ".xz":
        content = _unpacked(content, path)
    try:
        images, flags = _StrictUnpickler(io.BytesIO(content), encoding="bytes").load()
        encoded = [_image(image) for image in _list(images)]
        same = np.array([_flag(flag) for flag in _list(flags)], np.bool_)
    except Exception as error:  # a damaged or forged pickle can end in any
        reason = error if isinstance(error, UserError) else "it is damaged or another kind of file"
        raise UserError(f"{path} is no .bin set of (images, flags): {reason}") from None
    if len(encoded) != 2 * len(same):
        raise UserError(f"{path} has {len(encoded)} images for {len(same)} pairs; there should be two each")
    if not len(same):
        raise UserError(f"{path} holds no pairs")
    return BinSet(encoded, same)


def write_bin(path: str | Path, encoded: Sequence[bytes | np.ndarray], same: np.ndarray) -> None:
    """Write pairs, ``encoded`` (2P) and ``same`` bool (P,), as a plain pickle that insightface's loaders read too."""
    if len(encoded) != 2 * len(same):
        raise UserError(f"{len(encoded)} images for {len(same)} pairs; there should be two each")
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(([bytes(image) for image in encoded], [bool(flag) for flag in same]), file, protocol=4)


_GROWTH = 16  # times its size, to which a packed set may grow
_UNPACKING = 1 << 30  # bytes that LZMA may take for its dictionary; xz -9 needs 65 MiB


def _unpacked(packed: bytes, path: str | Path) -> bytes:
    """The content of an ``.xz`` file, of one stream or several."""
    parts: list[bytes] = []
    room, rest = _GROWTH * len(packed) + (1 << 20), packed
    try:
        while rest:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_UNPACKING)
            parts.append(stream.decompress(rest, max_length=room))
            room -= len(parts[-1])
            if not stream.eof:
                reason = "it is cut off" if room > 0 else f"it unpacks to more than {_GROWTH} times its size"
                raise UserError(f"{path} is no packed set: {reason}")
            rest = stream.unused_data.lstrip(b"\0")  # streams may be padded
    except lzma.LZMAError as error:
        raise UserError(f"{path} is no .xz file: {error}") from None
    return b"".join(parts)


_ELEMENTS = re.compile(r"b1|[iu][1248]|f[248]|O[48]?|S[1-9][0-9]{0,9}", re.ASCII)


class _DType:
    """Stands in for ``numpy.dtype``: numbers of at most eight bytes, byte strings and objects, and nothing else."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name
        self.order: Literal["<", ">", "=", "|"] = "|"
        if not _ELEMENTS.fullmatch(self.name):
            raise UserError(f"it holds an array with elements of type {self.name!r}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if isinstance(order, bytes):
            order = order.decode()
        self.order = order


class _Array:
    """Stands in for a numpy array or scalar."""

    dtype: _DType
    content: bytes | list  # a list of the elements if they are objects

    def __setstate__(self, state: tuple) -> None:
        _, _, self.dtype, _, self.content = state  # version, shape, dtype, Fortran order, bytes

    def elements(self) -> list:
        name = self.dtype.name
        if name[0] == "O":
            return list(self.content)
        assert not isinstance(self.content, list)
        if name[0] == "S":
            size = int(name[1:])
            return [self.content[at : at + size].rstrip(b"\0") for at in range(0, len(self.content), size)]
        return np.frombuffer(self.content, np.dtype(name).newbyteorder(self.dtype.order)).tolist()


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(content: bytes, dtype: _DType, *_: object) -> _Array:
    array = _Array()
    array.dtype, array.content = dtype, content
    return array


def _scalar(dtype: _DType, content: bytes) -> _Array:
    return _frombuffer(content, dtype)


def _bytearray(content: bytes = b"") -> bytes:
    if not isinstance(content, bytes):  # a number would be a length
        raise UserError(f"it asks for a bytearray of {type(content).__name__}")
    return content


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise UserError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes in protocol 2
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # before and since numpy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _StrictUnpickler(pickle._Unpickler):
    """Derived from the unpickler written in Python: the one in C allocates as much as a forged file asks for."""

    dispatch = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in _STAND_INS:
            raise UserError(f"it asks for {module}.{name}, which no such set needs")
        return _STAND_INS[module, name]

    def load_bytearray8(self) -> None:
        """Unlike Python's, it takes no more memory than there are bytes."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[assignment]  # they take this class, not the C one


def _list(values: _Array | list) -> list:
    return values.elements() if isinstance(values, _Array) else values


def _image(value: object) -> bytes:
    content = value
    if isinstance(value, _Array):
        if value.dtype.name != "u1" and value.dtype.name[0] != "S":
            raise UserError(f"an image is an array with elements of type {value.dtype.name!r}")
        content = value.content
    if not isinstance(content, (bytes, bytearray)):
        raise UserError(f"an image is of type {type(content).__name__}, not bytes")
    if not content:
        raise UserError("an image is empty")
    return bytes(content)


def _flag(value: object) -> bool:
    values = value.elements() if isinstance(value, _Array) else [value]
    if len(values) != 1 or values[0] not in (0, 1):
        raise UserError(f"a flag is {values[0] if len(values) == 1 else values!r}, not True or False")
    return bool(values[0])
