"""A folder that appears under its name only when all of it is there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, sync
from pipelines.common.locks import take_lock

_LOCK = ".lock"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, ``.<out>.partial``, which becomes ``out`` if the block ends well.

    What an earlier, interrupted run left there is still in it. Raises as `check_new` does, and ``UserError`` where
    another process is writing ``out``.
    """
    check_new(out)
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take_lock(lock, partial):
            raise UserError(f"{out} is being written by another process: wait for its end, or name another folder")
        check_new(out)  # the other may have ended in between
        yield partial
        partial.replace(out)
        (out / _LOCK).unlink()  # not before: a process that began then would find nobody writing
        sync(out.parent)
    finally:
        os.close(lock)


def check_new(out: Path) -> None:
    """Raise ``ValueError`` if ``out`` holds anything or is no name for a folder, ``OSError`` if it could not be made.

    Nothing is made. For commands that write after long work.
    """
    if out.name in ("", ".."):
        raise UserError(f"a new folder cannot be called '{out}': give it a name of its own")
    if out.is_symlink():
        raise UserError(f"{out} is a link, in whose place no folder can be put: name the folder itself, or remove it")
    if out.is_mount():
        raise UserError(f"{out} is a mount point, in whose place no folder can be put: name a folder in it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or name another folder")
    check_folder(out.parent)


def clear(partial: Path) -> None:
    """Remove what an earlier run left in the folder that `new_folder` gives."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
