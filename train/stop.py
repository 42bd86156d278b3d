"""Signals that end a run in good order, and what the ranks tell each other about it."""

import os
import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

# What a scheduler, a launcher or a person sends: SLURM's --signal sends whichever it is told, a terminal SIGHUP when it
# is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(SystemExit):
    """The end of a run by a signal: in good order, on all ranks at the same step. The exit code is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """Within its ``with`` block a signal is noted in ``received`` (0: none) instead of ending the process.

    A second SIGINT ends it at once. A SIGHUP that is ignored, as under nohup, stays so.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "Signals":
        outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in _SIGNALS if not (number == signal.SIGHUP and outlives_terminal)]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os._exit(128 + number)
        self.received = number


class Votes:
    """What one rank knows and all have to act on at the same step.

    Votes are exchanged on the processors behind the step's work and counted at the next call, so that no rank waits for
    another or for its device.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def exchange(self, *votes: int) -> list[int]:
        """The greatest of each vote over the ranks: of the last call's, or of this one's where there is one rank.

        All ranks call.
        """
        if dist.get_world_size() == 1:
            return list(votes)
        counted = self.close() or [0] * len(votes)
        cast = torch.tensor(votes)
        work = dist.all_reduce(cast, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None  # this rank is in the group
        self._pending = work, cast
        return counted

    def close(self) -> list[int]:
        """Wait for the exchange under way; what it comes to, or nothing where there is none."""
        if self._pending is None:
            return []
        work, cast = self._pending
        self._pending = None
        work.wait()
        return cast.tolist()
