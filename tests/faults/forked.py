"""Commands in forked processes: importing torch and DALI takes seconds, a fork milliseconds, a hundred kills minutes.

A child is the command as a user types it, from ``main`` on, in a process of its own: SIGKILL is SIGKILL. It may also be
told to die at a certain write, which Python's audit events show without a change to the product.
"""

import contextlib
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.registry import BACKBONES
from pipelines.common.command import run
from tests.processes import CONTEXT, PRELOADED
from tests.train.plain_run import Plain
from train.run import main

# Events of Python that change what a folder holds; "open" counts where it may write. Then where their arguments are:
# paths, and the descriptor of the folder that each begins in.
CHANGES = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
}


@dataclass(frozen=True)
class Attack:
    """SIGKILL just before the ``count``-th change of a file under the watched folder of which ``pattern`` is found.

    With ``delay`` that change takes so many seconds instead, as on a slow disk; with ``fill``, the name of a file, all
    room is taken before it.
    """

    pattern: str = "."
    count: int = 1
    delay: float | None = None
    fill: Path | None = None

    def strike(self, process: int) -> None:
        """Do it to a process, of which this is a thread."""
        if self.delay is not None:
            time.sleep(self.delay)
        elif self.fill is not None:
            fill(self.fill)
        else:
            os.kill(process, signal.SIGKILL)


def fill(path: Path) -> None:
    """Take all room of a file system by a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while True:
            os.write(file, bytes(1 << 16))
    os.close(file)


def _watch(folder: Path, trace: Path, attack: Attack | None) -> None:
    """Write each change of a file under ``folder`` to ``trace``, and strike at that of ``attack``."""
    file, process, inside, reached = trace.open("w"), os.getpid(), f"{folder}/", itertools.count(1)

    def hook(event: str, args: tuple) -> None:
        if event not in CHANGES or (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        paths = [_path(args[name], args[folder] if folder else -1) for name, folder in CHANGES[event]]
        if not paths[0].startswith(inside) or attack and attack.fill and paths[0] == str(attack.fill):
            return
        line = " ".join([event, *(path.removeprefix(inside) for path in paths)])
        file.write(line + "\n")
        file.flush()
        if attack and re.search(attack.pattern, line) and next(reached) == attack.count:
            attack.strike(process)

    sys.addaudithook(hook)


def _path(name: object, folder: int) -> str:
    if not isinstance(name, (str, bytes, os.PathLike)):  # a descriptor
        return ""
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else "", os.fsdecode(name))  # noqa: PTH115,PTH118


def train() -> None:
    """The training command, with the tests' small network to name."""
    BACKBONES["plain"] = Plain
    main()


def _main(command: Callable[[], None], arguments: Sequence[str], folder: Path, notes: Path, attack: Attack) -> None:
    with notes.with_suffix(".said").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    assert sys.modules.keys() >= set(PRELOADED), "the server, which passes over what it cannot import"
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, from wherever the tests are run
    sys.argv = ["command", *arguments]
    _watch(folder, notes.with_suffix(".trace"), attack)
    run(command)


class Forked:
    """A command in the background, whose changes of ``folder`` are watched; ``notes`` begins names of what it tells."""

    def __init__(
        self,
        command: Callable[[], None],
        arguments: Sequence[str],
        folder: Path,
        notes: Path,
        attack: Attack | None = None,
    ) -> None:
        self._said = notes.with_suffix(".said")
        self._begin = self._said.stat().st_size if self._said.exists() else 0
        self.process = CONTEXT.Process(target=_main, args=(command, arguments, folder, notes, attack))
        self.process.start()

    def wait(self, timeout: float = 120) -> int:
        """The exit code, negative for the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        """What it has printed."""
        with self._said.open() as file:
            file.seek(self._begin)
            return file.read()
