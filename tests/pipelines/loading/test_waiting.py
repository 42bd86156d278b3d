"""What counts as waiting for a batch: the host's clock on a CPU, the stream's on a GPU."""

import time

import pytest
import torch

from pipelines.loading.waiting import Waiting


class Event:
    """A place in the stream of a GPU of which nobody knows when it is reached before it was waited for."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        Event.clock += 1.0
        self.at, self.reached = Event.clock, False

    def synchronize(self):
        self.reached = True

    def elapsed_time(self, end):
        assert end.reached
        return 1000 * (end.at - self.at)


def test_on_a_gpu_it_is_its_stream_that_waits(monkeypatch):
    """The host goes on at once, so its clock says nothing."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    waiting = Waiting(torch.device("cuda"))
    for _ in range(3):
        with waiting.counted():
            pass
    assert waiting.take() == 3.0 and waiting.take() == 0


def test_on_a_cpu_it_is_the_clock_while_a_batch_is_fetched(monkeypatch):
    now = iter([10.0, 10.5, 20.0, 22.0, 30.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    waiting = Waiting(torch.device("cpu"))
    for _ in range(2):
        with waiting.counted():
            pass
    with pytest.raises(StopIteration, match="the end"), waiting.counted():
        raise StopIteration("the end")
    assert waiting.take() == 2.5 and waiting.take() == 0
