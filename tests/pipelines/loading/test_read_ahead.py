"""The thread that makes batches ahead of their use: its order, its errors, its end."""

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.common.cpu import one_thread_here
from pipelines.loading.loader import read_once
from tests.pipelines.face_source import COUNT, DAMAGED, SIZE, FaceSource, assert_same, make, take

LIMIT = 20.0  # seconds after which a test has failed


class SlowSource(FaceSource):
    """Reads ``free`` batches at once, and the others when ``go`` is set."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free, self.go = free, threading.Event()

    def read(self, indices):
        if len(self.reads) >= self.free:
            assert self.go.wait(LIMIT)
        return super().read(indices)


def until(condition) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def workers() -> int:
    return sum(thread.name == "read ahead" for thread in threading.enumerate())


def test_batches_lie_ready_while_a_read_hangs():
    source = SlowSource(free=5)
    loader = make(source, prefetch=2)
    batches = [next(loader) for _ in range(4)]  # the fifth is in the decoder, behind whose back the sixth is read
    assert len(source.reads) == 5
    source.go.set()
    batches += [next(loader) for _ in range(4)]
    loader.close()
    assert_same(batches, take(make(), 8))


def test_reading_runs_ahead_by_twice_the_prefetched_batches():
    source = FaceSource()
    loader = make(source, prefetch=4)
    for taken in range(1, 4):
        next(loader)
        until(lambda: len(source.reads) == taken + 4 + 4)  # noqa: B023  # finished ones, and those in the decoder
        time.sleep(0.05)
        assert len(source.reads) == taken + 8
    loader.close()


@pytest.mark.parametrize("images", [{"unreadable": (21,)}, {"replace": {21: DAMAGED["half"]}}])
def test_an_error_comes_in_the_place_of_its_batch_and_ends_it(images):
    batches = read_once(FaceSource(**images), np.arange(COUNT), batch_size=4, image_size=SIZE)
    shown = [next(batches).indices for _ in range(5)]
    assert np.array_equal(torch.cat(shown), np.arange(20))
    with pytest.raises((ValueError, OSError), match="image 21"):
        next(batches)
    assert list(batches) == []


def test_a_loader_raises_again_what_is_still_wrong():
    source = FaceSource(unreadable=tuple(range(COUNT)))
    loader = make(source, max_bad_fraction=0.1)
    for _ in range(2):
        with pytest.raises(ValueError, match="images are bad"):
            next(loader)
    source.unreadable = ()
    assert loader.step == 0


def test_the_thread_ends_with_the_last_reference():
    gc.collect()
    before = workers()
    loader, batches = make(), read_once(FaceSource(), np.arange(COUNT), batch_size=4, image_size=SIZE)
    next(loader), next(batches)
    assert workers() == before + 2
    del loader, batches
    gc.collect()
    assert workers() == before


def test_closing_waits_for_a_hanging_read_so_long_only_and_going_on_for_its_end():
    source = SlowSource(free=1)
    loader = make(source, prefetch=1)
    first = next(loader)
    hanging = loader._ahead
    hanging.close(patience=0.05)
    assert hanging._worker.is_alive()
    threading.Timer(0.2, source.go.set).start()
    second = next(loader)
    assert not hanging._worker.is_alive()
    loader.close()
    assert_same([first, second], take(make(), 2))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_is_for_the_calling_thread_alone(two_threads):
    numbers = []

    def run() -> None:
        one_thread_here()
        numbers.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert numbers == [1] and torch.get_num_threads() == 2
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert numbers == [1, 2]


FORK = "child = get_context('fork').Process(target=drop); child.start(); child.join(); assert child.exitcode == 0"
ENDS = {
    "without closing": "",
    "with an error": "raise SystemExit(3)",
    "in a read that hangs": "until(lambda: len(source.reads) == 5)",
    "after a fork": FORK,
}
# Python imports once, then comes to its own end in one child after the other.
PROGRAM = """
import gc, os, signal, sys
from multiprocessing import get_context
from pipelines.loading import read_ahead
from tests.pipelines.face_source import make
from tests.pipelines.loading.test_read_ahead import ENDS, SlowSource, until
for end in ENDS:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(60)
for descriptor, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{end}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
read_ahead._PATIENCE = 0.2
source = SlowSource(5 if end == "in a read that hangs" else 1000)
loader = make(source)
for _ in range(3):
    next(loader)
def drop():
    del globals()["loader"]
    gc.collect()
print("read", flush=True)
exec(ENDS[end])
"""


def test_a_process_ends_with_its_threads(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    python = [sys.executable, "-W", "ignore:This process:DeprecationWarning"]  # of newer ones, that it has threads
    ended = subprocess.run(
        [*python, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    for end, code in zip(ENDS, ended.stdout.split(), strict=True):
        said, error = ((tmp_path / f"{end}.{name}").read_text() for name in ("out", "err"))
        assert code == ("3" if end == "with an error" else "0"), (end, code, error)
        assert said.startswith("read") and not error, end
