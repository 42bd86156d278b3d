"""Files: reading small ones, and writing so that no reader ever meets half of one."""

import errno
import os
import re
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

import numpy as np

from pipelines.common.errors import UserError, one_line

_UMASK = os.umask(0o077)  # there is no other way to ask for it
os.umask(_UMASK)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # what `replacing` calls them


def distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """Names to tell paths apart by: each one's last part, led by as many folders as it takes.

    ``[a/lfw, b/lfw, b/agedb_30]`` are a/lfw, b/lfw and agedb_30. Raises ``ValueError`` for a path given twice.
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100  links stay as they are
    for place, path in enumerate(paths):
        if parts[place] in parts[:place]:
            raise UserError(f"{path} is given twice")
    depths = [1] * len(parts)
    while True:
        names = ["/".join(part[-depth:]).lstrip("/") for part, depth in zip(parts, depths)]
        counts = Counter(names)
        if len(counts) == len(names):
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names)]


def read_file(path: str) -> np.ndarray:
    """The bytes of a file, uint8 (bytes,); for small ones twice as quick as ``np.fromfile``."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a str: there may be millions
        return np.frombuffer(file.read(), np.uint8)


def load_array(path: str | Path) -> np.ndarray:
    """The array of a ``.npy`` file. Raises ``UserError`` where it is none of numbers, damaged or cut off."""
    with Path(path).open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged header ends in almost any class
            raise UserError(f"{path} is no sound .npy file ({one_line(error)})") from None


@contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path``. What is written there takes the place of ``path`` if the block ends well.

    A ``durable`` file is on the disk before it gets its name, so that it survives a loss of power; to wait for that
    would take hours where small files are very many. All whom the umask lets may read the file, even if a library
    (safetensors) has made it for its user alone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming(path):
            yield temporary
            _open_to_others(temporary)
            if durable:
                sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file, whole or not at all.

    A disk that is full is told as such: ``np.save`` into an open file knows of no reason, but how many numbers fitted.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(cast(BinaryIO, SimpleNamespace(write=file.write)), array)  # all that it needs of a file


def _open_to_others(path: Path) -> None:
    """Give a new file what permissions the umask leaves of reading and writing for everybody."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if missing := 0o666 & ~_UMASK & ~mode:
        with suppress(PermissionError):  # a file system that has no permissions of its own
            path.chmod(mode | missing)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A file that grows too large within the block, for the disk or a limit, is told of by its name."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = os.fspath(path)
        raise


def check_folder(path: Path) -> None:
    """Raise ``OSError`` where no file could be made in a folder that is there or to be made; nothing is made.

    For commands that write after long work.
    """
    place = path.absolute()
    while not place.exists():  # nor is anything below a file
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def check_file(path: Path) -> None:
    """Raise ``OSError`` where no file ``path`` could be made or replaced; nothing is made.

    As `check_folder`, for a file in a folder that is there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    check_folder(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not do it for folders
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of files that were to appear in ``folder`` by `replacing`.

    For folders to which nobody else writes at the moment.
    """
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
