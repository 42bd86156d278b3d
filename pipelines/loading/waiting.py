"""How long training has waited for its batches, as the device sees it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MOST_STALLS = 10_000  # that are kept until somebody asks


class Waiting:
    """The seconds for which the device had nothing to do because a batch was still to come.

    On a CPU that is the host's time in fetching it. On a GPU, whose stream is told to wait for the batch while the host
    goes on, it is the time for which the stream stood still.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0  # on a CPU
        # On a GPU, begin and end of each.
        self._stalls: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=_MOST_STALLS)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time that a batch is fetched in."""
        began, begin = time.perf_counter(), self._mark()
        yield
        if begin and (end := self._mark()):
            self._stalls.append((begin, end))
        self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """The seconds since the last call; of a GPU this waits until its stream is past the last fetching."""
        seconds, self._seconds = self._seconds, 0.0
        if self._device.type == "cuda":
            seconds = sum(_seconds_between(*stall) for stall in self._stalls)
        self._stalls.clear()
        return seconds

    def _mark(self) -> torch.cuda.Event | None:
        """A place in a GPU's stream whose time can be told afterwards."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return begin.elapsed_time(end) / 1000
