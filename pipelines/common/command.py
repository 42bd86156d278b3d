"""How every command of Facemill ends: a user's mistake is one clear line and exit code 2, a bug is a traceback."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable

from pipelines.common.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a ``UserError`` or ``OSError`` that reaches here is the user's to mend.

    Set ``FACEMILL_TRACEBACK=1`` to see where it came from.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are any bytes, whatever the terminal prints
    try:
        main()
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if os.environ.get("FACEMILL_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "; make room and run the same command again"
        rank = os.environ.get("RANK", "0")
        print(f"error: {text}" if rank == "0" else f"error on rank {rank}: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def at_least(least: int) -> Callable[[str], int]:
    """For ``type`` of an argument: a whole number of ``least`` or more."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse
