"""Signals: a run saves, says so in one line, leaves with a code of its own, and goes on with the same command."""

import os
import re
import signal
import time

import pytest

from tests.faults.forked import Attack
from tests.faults.support import gone, same, torchrun

RANKS = ["data.batch_size=8", "log.sinks=[jsonl]"]


def stopped(job, said, name):
    """The step of the line that says where the run was stopped and saved; there is one such line."""
    (line,) = [line for line in said.splitlines() if line.startswith("stopped by")]
    found = re.fullmatch(rf"stopped by {name} at step (\d+): wrote (\S+); the same command goes on from there", line)
    assert found and found[2] == f"{job.output}/checkpoints/{job.checkpoints[-1]}", line
    step = int(found[1])
    assert job.checkpoints[-1] == f"step_{step:09d}" and job.step() == step
    return step


def test_saved_and_gone_on(job, whole):
    """By each signal in turn."""
    steps = [0]
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"):
        run, number = job.fork(), signal.Signals[name]
        while job.step() < steps[-1] + 3 or job.step() > 55:
            assert run.process.is_alive(), run.said()
            time.sleep(0.002)
        os.kill(run.process.pid, number)
        assert run.wait() == 128 + number, run.said()
        assert "Traceback" not in run.said()
        assert not steps[-1] or f"resuming at step {steps[-1]}" in run.said()
        steps.append(stopped(job, run.said(), name))
    assert steps == sorted(set(steps)) and steps[-1] < 60
    job.finish()
    same(job, whole)


def test_a_second_interrupt_does_not_wait(job, whole):
    """A save takes longer than the user's patience."""
    run = job.fork(attack=Attack(r"mkdir checkpoints/step_\d+\.partial", delay=60))
    while not job.step():
        time.sleep(0.002)
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(1)
    assert run.process.is_alive(), run.said()
    os.kill(run.process.pid, signal.SIGINT)
    began = time.monotonic()
    assert run.wait() == 130 and time.monotonic() - began < 3
    assert "Traceback" not in run.said()
    job.finish()
    same(job, whole)


def test_two_ranks(job, whole):
    """A signal to one rank stops both; one to torchrun is handed on; without torchrun they do not train on."""
    launcher = torchrun("--nproc_per_node=2")
    with job.start(*RANKS, launcher=launcher) as run:
        run.until(lambda: job.step() >= 6)
        os.kill(job.ranks()[1], signal.SIGUSR1)
        assert run.wait() == 1
        first = stopped(job, run.said(), "SIGUSR1")
    with job.start(*RANKS, launcher=launcher) as run:
        run.until(lambda: job.step() >= first + 6)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 1
        second = stopped(job, run.said(), "SIGTERM")
        assert gone(job, 1)
    with job.start(*RANKS, "checkpoint.every_steps=1000", launcher=launcher) as run:  # its first one is that of its end
        run.until(lambda: job.step() >= second + 6)
        run.process.kill()
        assert gone(job, 10), "ranks outlive their launcher"
        assert int(job.checkpoints[-1][5:]) == job.step() > second + 5
    job.finish("log.sinks=[jsonl]")
    same(job, whole, within=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("when", [0, 0.5, 1, 2, 3, 4, 6])
def test_while_it_starts(job, whole, when):
    """Whatever the moment, nothing is half done, and the run goes on."""
    with job.start(*RANKS, launcher=torchrun("--nproc_per_node=2")) as run:
        time.sleep(when)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(60) != 0 and gone(job, 5)
    job.finish("log.sinks=[jsonl]")
    same(job, whole, within=1e-4)
