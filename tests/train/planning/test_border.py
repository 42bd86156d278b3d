"""The border of what fits is one: there it does, one step further it does not."""

from dataclasses import replace

import pytest

from tests.train.planning.support import config
from train.planning.border import _largest, fits, largest_batch, most_identities
from train.planning.step import Setting, trace_step

GIB = 2**30
SETTING = Setting(gpu=True, memory=3 * GIB, ranks=2, identities=50_000)
MODEL = {"name": "mbf", "input_size": 64}


def with_batch(batch):
    return config(MODEL, data={"batch_size": batch})


def test_the_largest_batch():
    most = largest_batch(with_batch(32), SETTING)
    assert most > 32
    assert fits(trace_step(with_batch(most), SETTING), SETTING)
    assert not fits(trace_step(with_batch(most + 1), SETTING), SETTING)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_the_most_identities(rate):
    settled = config(MODEL, {"sample_rate": rate})
    most = most_identities(settled, SETTING, trace_step(settled, SETTING))
    assert most > 50_000
    for identities, inside in ((0.99 * most, True), (1.01 * most, False)):
        setting = replace(SETTING, identities=round(identities))
        assert fits(trace_step(settled, setting), setting) is inside


def test_nothing_fits_into_no_memory():
    tiny = replace(SETTING, memory=GIB // 2)
    assert largest_batch(with_batch(32), tiny) == 0
    assert most_identities(with_batch(32), tiny, trace_step(with_batch(32), tiny)) == 0


def test_some_memory_is_left():
    trace = trace_step(with_batch(32), SETTING)
    taken = trace.memory.total
    assert not fits(trace, replace(SETTING, memory=round(1.02 * taken)))
    assert fits(trace, replace(SETTING, memory=round(1.1 * taken)))


@pytest.mark.parametrize("guess", [2, 3, 50, 1000])
@pytest.mark.parametrize("limit", [109, 110, 119, 120, 1234, 90])
def test_search(limit, guess):
    """Of a function with a bend; the answer by trying all."""
    tries = []

    def needed(n):
        tries.append(n)
        return 100 + 3 * n if n < 100 else 10 * n - 600

    assert _largest(needed, limit, 2, guess) == max((n for n in range(2, 999) if needed(n) <= limit), default=0)
