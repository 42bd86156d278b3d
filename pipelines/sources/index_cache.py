"""What a reader has found out about its files, kept beside them for the next start."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipelines.common.files import replacing

Index = TypeVar("Index", bound=NamedTuple)  # its fields are arrays, or numbers


def cached(cache: Path, files: Sequence[Path], version: int, kind: type[Index], make: Callable[[], Index]) -> Index:
    """The index that ``make`` gives, from the file ``cache`` while it holds the one of the ``files`` as they are.

    A cache counts for the ``version`` that wrote it while the sizes and times of all files are what they were; files
    that are missing count as such. Where it cannot be written, every start makes the index again.
    """
    stamp = np.array([version, *(number for file in files for number in _size_and_time(file))])
    index = _load(cache, stamp, kind)
    if index is None:
        index = make()
        _save(cache, stamp, index)
    return index


def _size_and_time(file: Path) -> tuple[int, int]:
    if not file.exists():
        return -1, -1
    return file.stat().st_size, file.stat().st_mtime_ns


def _load(cache: Path, stamp: np.ndarray, kind: type[Index]) -> Index | None:
    try:
        with np.load(cache, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], stamp):
                arrays = [saved[name] for name in kind._fields]
                return kind(*(array if array.ndim else array.item() for array in arrays))
    except Exception:  # none, or one that is damaged, which can end in any: it is made anew
        pass
    return None


def _save(cache: Path, stamp: np.ndarray, index: Index) -> None:
    # Data sets often lie in folders that are read-only (even where root could write).
    if not cache.parent.stat().st_mode & 0o222:
        return
    with contextlib.suppress(OSError), replacing(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, stamp=stamp, **index._asdict())
