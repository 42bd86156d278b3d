"""Signals are noted, and every rank hears of what one of them knows, at the same step."""

import os
import signal
import subprocess
import sys

import pytest
import torch.distributed as dist

from train.stop import Signals, Stopped, Votes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_is_noted(number):
    before = signal.signal(number, signal.SIG_DFL)  # a shell may have let these tests ignore it
    try:
        with Signals() as signals:
            assert signals.received == 0
            os.kill(os.getpid(), number)
            assert signals.received == number
        assert signal.getsignal(number) is signal.SIG_DFL and Stopped(number).code == 128 + number
    finally:
        signal.signal(number, before)


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_at_once():
    program = """
import os, signal, time
from train.stop import Signals
with Signals():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print("going on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not reached", flush=True)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 130 and result.stdout == "going on\n"


def heard():
    votes, rank = Votes(), dist.get_rank()
    heard = [votes.exchange(15 * (step == 2 and rank == 1), step * rank) for step in range(4)]
    return [*heard, votes.close(), votes.close()]


def test_all_ranks_hear_it_at_the_same_step(ranks):
    assert ranks(2, heard) == [[[0, 0], [0, 0], [0, 1], [15, 2], [0, 3], []]] * 2
    assert ranks(1, heard) == [[[0, 0], [0, 0], [0, 0], [0, 0], [], []]]
