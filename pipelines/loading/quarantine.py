"""Images that cannot be used: they are told of once, and too many of them end a run."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from pipelines.common.errors import UserError
from pipelines.common.files import naming
from pipelines.common.log import get_logger
from pipelines.sources.source import Source

logger = get_logger(__name__)

_PATIENCE, _PAUSE = 100, 0.01  # tries to lock the file, and seconds between them


class Quarantine:
    """The bad images of a source, by index. Each is logged and, with a ``path``, becomes a line of JSON there, once.

    All ranks of a run share that file, and its restarts too: what it lists is bad from the start, and the images that
    other ranks have added since are read whenever one is added here. Lines that are no entries are passed over.
    Several threads may use it.

    Raises ``ValueError``, at the start and in ``add``, when more than ``max_fraction`` of the images that there should
    be are bad or missing.
    """

    def __init__(self, source: Source, *, max_fraction: float, path: str | Path | None) -> None:
        self._source = source
        self._max_fraction = max_fraction
        self._path = Path(path) if path else None
        self._steps: dict[int, int] = {}  # the step at which an image was found to be bad, by its index
        self._read_to = 0  # bytes of the file
        self._lock = Lock()
        self._read()
        self._check(f"{self._path} lists them: delete it once they are mended")

    def __contains__(self, index: int) -> bool:
        return index in self._steps

    def __len__(self) -> int:
        return len(self._steps)

    def found_before(self, step: int) -> int:
        """How many images were found to be bad before ``step``, by any rank and at any start."""
        with self._lock:
            self._read()
            return sum(found < step for found in self._steps.values())

    def add(self, index: int, reason: str, step: int) -> None:
        """``step``: the global step that the image was read for."""
        if index in self:
            return
        image = self._source.describe(index)
        with self._lock:
            if self._path:
                self._write(self._path, index, image=image, reason=reason, step=step)
            if index not in self:  # else another rank was quicker
                self._steps[index] = step
                logger.warning("a bad image is replaced by another: %s: %s", image, reason)
        self._check(f"the last one is {image}: {reason}")

    def _check(self, what: str) -> None:
        bad, missing, size = len(self), self._source.missing, len(self._source)
        whole = size + missing
        if bad + missing <= self._max_fraction * whole and bad < size:
            return
        limit = f"more than the fraction {self._max_fraction:g} that max_bad_fraction allows"
        if missing > bad:
            raise UserError(f"{missing} of {whole} images are missing, {limit}: {self._source.shortage}")
        lost = f" and {missing} missing" if missing else ""
        raise UserError(f"{bad} of {whole} images are bad{lost}, {limit}; {what}")

    def _write(self, path: Path, index: int, **entry: int | str) -> None:
        """Add a line, unless there is one of this image."""
        with naming(path), path.open("ab+", buffering=0) as file, _locked(file):
            torn = self._read_from(file)
            if index not in self:
                file.write(("\n" * torn + json.dumps({"index": index, **entry}) + "\n").encode())

    def _read(self) -> None:
        if not self._path:
            return
        with suppress(FileNotFoundError):
            if self._path.stat().st_size != self._read_to:
                with self._path.open("rb") as file:
                    self._read_from(file)

    def _read_from(self, file: BinaryIO) -> bool:
        """Take in what has been added to the file. Returns whether its last line has no end, as after a crash."""
        if file.seek(0, os.SEEK_END) < self._read_to:  # it was deleted or emptied in the meantime
            self._read_to = 0
        file.seek(self._read_to)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        self._read_to += whole
        for line in content[:whole].splitlines():
            entry = _parsed(line)
            if entry and 0 <= entry[0] < len(self._source):
                self._steps.setdefault(*entry)
        return whole < len(content)


def _parsed(line: bytes) -> tuple[int, int] | None:
    """The index and the step of an entry."""
    try:
        entry = json.loads(line)
        index, step = entry["index"], entry.get("step", 0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return (index, step) if type(index) is type(step) is int else None


@contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """The file to ourselves until it is closed; without that where the file system has no locks, or one hangs."""
    for _ in range(_PATIENCE):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:
            break
    yield
