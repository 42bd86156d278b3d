"""``.bin`` verification sets (LFW, CFP-FP, AgeDB-30, …): a pickle of (2P encoded images, P flags: the same person?).

They come as Python 2 and Python 3 pickles, images as ``bytes`` or uint8 arrays, flags as ``bool``, numpy's or an array.
A pickle can run any code when it is loaded, so they are read with stand-ins for the few names that such data needs, and
any other name is refused. Numpy's own classes are not used either: forged pickles can make them read foreign memory.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.files import replacing


@dataclass(frozen=True)
class BinSet:
    """Images 2i and 2i + 1 are pair i."""

    encoded: list[bytes]  # (2P)
    same: np.ndarray  # bool (P,)


def read_bin(path: str | Path) -> BinSet:
    """Read a ``.bin`` set. Raises ``ValueError`` naming the file where it is anything else."""
    content = Path(path).read_bytes()
    try:
        images, flags = _StrictUnpickler(io.BytesIO(content), encoding="bytes").load()
        encoded = [_image(image) for image in images]
        same = np.array(_flags(flags), np.bool_)
    except Exception as error:  # a damaged or forged pickle can end in any
        reason = error if isinstance(error, ValueError) else "it is damaged or another kind of file"
        raise ValueError(f"{path} is no .bin set of (images, flags): {reason}") from None
    if len(encoded) != 2 * len(same):
        raise ValueError(f"{path} has {len(encoded)} images for {len(same)} pairs; there should be two each")
    if not len(same):
        raise ValueError(f"{path} holds no pairs")
    return BinSet(encoded, same)


def write_bin(path: str | Path, encoded: Sequence[bytes | np.ndarray], same: np.ndarray) -> None:
    """Write pairs, ``encoded`` (2P) and ``same`` bool (P,), as a plain pickle that insightface's loaders read too."""
    if len(encoded) != 2 * len(same):
        raise ValueError(f"{len(encoded)} images for {len(same)} pairs; there should be two each")
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(([bytes(image) for image in encoded], [bool(flag) for flag in same]), file, protocol=4)


class _Array:
    """Stands in for a numpy array or scalar with elements of one byte."""

    content: bytes

    def __setstate__(self, state: tuple) -> None:
        _, _, _, _, self.content = state  # version, shape, dtype, Fortran order, bytes


class _DType:
    """Stands in for ``numpy.dtype``: uint8 and bool, and nothing else."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", "b1", b"u1", b"b1"):
            raise ValueError(f"it holds an array with elements of type {name!r}")

    def __setstate__(self, state: tuple) -> None:
        """Nothing in it matters to elements of one byte."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(content: bytes, *_: object) -> _Array:
    array = _Array()
    array.content = content
    return array


def _scalar(_: _DType, content: bytes) -> _Array:
    return _frombuffer(content)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes in protocol 2
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

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it asks for {module}.{name}, which no such set needs")
        return _STAND_INS[module, name]


def _image(value: object) -> bytes:
    content = value.content if isinstance(value, _Array) else value
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"an image is of type {type(content).__name__}, not bytes")
    if not content:
        raise ValueError("an image is empty")
    return bytes(content)


def _flags(values: object) -> list[bool]:
    if isinstance(values, _Array):
        values = values.content
    flags = [any(value.content) if isinstance(value, _Array) else value for value in values]
    for wrong in (flag for flag in flags if flag not in (0, 1)):
        raise ValueError(f"a flag is {wrong!r}, not True or False")
    return flags
