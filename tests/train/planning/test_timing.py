"""Operators that are timed: which, how often, on what."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.train.planning.support import config
from train.planning import timing
from train.planning.step import Setting, trace_step
from train.planning.timing import OperatorTimer, _real


def test_operators_that_are_alike_run_once(monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "_once", lambda func, call: calls.append(func) or float(len(calls)))
    add, timer = torch.ops.aten.add.Tensor, OperatorTimer()
    with FakeTensorMode():
        a, b = torch.zeros(4, 4), torch.zeros(4, 4)
        assert timer(add, (a, b), {}) == timer(add, (b, a), {}) == 1
        assert timer(add, (a, b.t()), {}) > 1  # another memory format
        assert timer(torch.ops.aten.mul.Tensor, (a, b), {}) > timer(add, (a, b.t()), {})
    assert len(calls) == 3 * timing._TIMES


def test_real_tensors_are_like_the_fake_ones():
    with FakeTensorMode():
        fakes = [
            torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
            torch.zeros(5, 1).expand(5, 7),
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(0, 4),
            torch.zeros(10, 10)[2:4, ::3],
        ]
    for fake in fakes:
        real = _real(fake)
        assert type(real) is torch.Tensor
        assert (real.dtype, real.shape, real.stride()) == (fake.dtype, fake.shape, fake.stride())
    assert _real(fakes[0]).min() >= 0.5 and not _real(fakes[2]).any()


def test_a_step_on_a_cpu_is_timed_operator_by_operator():
    settled = config({"name": "mbf", "width": 0.125, "input_size": 32}, {"sample_rate": 0.5})
    trace = trace_step(settled, Setting(False, 2**33, 1, 1000), timer=OperatorTimer())
    assert all(work.seconds > 0 for work in trace.work)
    untimed = trace_step(settled, Setting(False, 2**33, 1, 1000))
    assert {work.seconds for work in untimed.work} == {None}
    assert untimed.memory == trace.memory
