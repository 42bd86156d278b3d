"""What the benchmarks measure with."""

import multiprocessing
import time

import torch

from benchmarks.measure import in_turns, processor_time


def _work(seconds: float, done, leave) -> None:
    while time.process_time() < seconds:
        pass
    done.set()
    leave.wait()


def test_processor_time_is_that_of_living_children_too():
    """0.3 seconds of work there, and next to none here."""
    context = multiprocessing.get_context("fork")
    done, leave = context.Event(), context.Event()
    began, here = processor_time(), time.process_time()
    child = context.Process(target=_work, args=(0.3, done, leave))
    child.start()
    done.wait()
    elsewhere = (processor_time() - began) - (time.process_time() - here)
    leave.set()
    child.join()
    assert 0.25 < elsewhere < 0.6


def test_ways_take_turns_and_the_first_rounds_do_not_count():
    called = []
    ways = {name: lambda name=name: called.append(name) for name in "ab"}
    walls, works = in_turns(ways, 3, torch.device("cpu"), warm_up=2)
    assert called == ["a", "b"] * 5
    assert [len(seconds) for times in (walls, works) for seconds in times.values()] == [3] * 4
