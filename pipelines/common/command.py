"""How every command of Facemill ends: a user's mistake is one clear line, a bug is a traceback.

Exit codes: 0 all is done; 1 a bug; 2 a mistake of the user, a file, disk or network that fails, or no memory left;
128 + n ended by signal n, which is 130 for Ctrl-C and 143 for SIGTERM. A command that finds what it looks for may end
with 1, too: its help says so.
"""

import argparse
import errno
import io
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

from pipelines.common.errors import UserError, escaped, one_line

_GLOO = ("gloo/transport", "pair closure")  # what gloo's errors, plain RuntimeErrors, can be told by
_CPU_ALLOCATOR = "DefaultCPUAllocator: "  # and those of torch's memory on a CPU


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a ``UserError`` or ``OSError`` that reaches here is the user's to mend, as is a want of memory.

    One of several ranks tells its error and ends at once, without leaving the process group: the others may sit in a
    collective, and to leave is to wait for them. Set ``FACEMILL_TRACEBACK=1`` to see where an error came from.
    """
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not several:  # a rank that sits in a collective would not hear it
        signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except KeyboardInterrupt:
        _exit(130, several)
    except Exception as error:
        line = _line(error, several)
        if line is None and not several:
            raise
        if line is None or os.environ.get("FACEMILL_TRACEBACK"):
            traceback.print_exc()
        if line is not None:
            print(f"error on rank {os.environ['RANK']}: {line}" if several else f"error: {line}", file=sys.stderr)
        _exit(1 if line is None else 2, several)


class _Lasting(io.FileIO):
    """A stream whose reader (head, less, a terminal) may go away: the rest is lost, the work that prints it goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not (isinstance(error, BrokenPipeError) or error.errno == errno.EIO):  # of a terminal that is closed
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _lasting(stream: TextIO) -> TextIO:
    """In place of a standard ``stream``: one that outlives its reader and prints names of any bytes."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), "wb", closefd=False)),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,  # written through: python -u
    )


def say(text: object) -> None:
    """Print a line in which names of files, or other texts out of them, may stand."""
    print(escaped(str(text)))


def _line(error: Exception, several: bool) -> str | None:
    """What a user is told; None for a bug."""
    if isinstance(error, UserError | OSError):
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return escaped(str(error)) + ("; make room and run the same command again" if full else "")
    # Torch's errors, too, are told by their names and texts: most commands do without torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _CPU_ALLOCATOR in str(error):
        wanted = escaped(one_line(error).split(_CPU_ALLOCATOR)[-1])[:160]
        return f"out of memory ({wanted}): take smaller batches or images; docs/troubleshooting.md says what else helps"
    if several and (type(error).__module__ == "torch.distributed" or any(part in str(error) for part in _GLOO)):
        return f"another rank is gone, or cannot be reached: {escaped(one_line(error))}"
    return None


def _end(number: int, frame: FrameType | None) -> None:
    """End in good order, so that what is half written is removed."""
    sys.exit(128 + number)


def _exit(code: int, several: bool) -> None:
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def cosine(text: str) -> float:
    """For ``type`` of an argument: a number from -1 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"a cosine lies between -1 and 1, not {text!r}")
    return number


def at_least(least: int, *, most: int | None = None) -> Callable[[str], int]:
    """For ``type`` of an argument: a whole number of ``least`` or more, up to ``most`` if given."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"{number} is more than {most}")
        return number

    return parse
