"""Commands called in the process of the tests, which saves the seconds that a new one takes to import torch."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from pipelines.common.command import run


class Ended(NamedTuple):
    """How a command ended, as a shell would see it."""

    code: int
    out: str
    error: str


def called(main: Callable[[], None], *arguments: object) -> Ended:
    """Call a command's ``main`` with these arguments; a bug raises."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()  # both of which a run settles
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        try:
            run(main)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
            torch.set_num_threads(threads)
            if dist.is_initialized():  # a process that ends with an error leaves the group to its end
                dist.destroy_process_group()
    return Ended(code, out.getvalue(), error.getvalue())
