"""SIGKILL, which no process can answer: of a run at any time and in any write, of one of several ranks."""

import os
import random
import signal
import time

import pytest

from tests.faults.forked import Attack
from tests.faults.support import SMOOTH, same, torchrun

# A kill in each kind of write, in an order in which one run meets them all: it is started again after each.
WRITES = {
    "config.yaml": r"config\.yaml",
    "the first bad image": r"quarantine\.jsonl",
    "the folder of a checkpoint": r"mkdir checkpoints/step_\d+\.partial",
    "tensors of a checkpoint": r"\.partial/\w+\.distcp",
    "what the tensors are": r"\.partial/\.metadata",
    "what the checkpoint is": r"\.partial/\S*meta\.json",
    "the name of a whole checkpoint": r"rename checkpoints/step_\d+\.partial checkpoints",
    "the log that is cut to where the run goes on": r"rename \.log\.jsonl",
    "best.pt": r"best\.pt",
    "an old checkpoint that is deleted": r"remove checkpoints/step_",
    "model.pt": r"rename .*model\.pt",
}
RANKS = ["data.batch_size=8", "log.sinks=[jsonl]"]


def test_in_each_kind_of_write(job, whole):
    for kind, pattern in WRITES.items():
        run = job.fork(attack=Attack(pattern))
        assert run.wait() == -signal.SIGKILL, f"never wrote {kind}:\n{run.said()}"
    job.finish()
    same(job, whole)


def test_one_of_two_ranks(job, whole):
    """torchrun starts them again, and nothing else has to be done."""
    with job.start(*RANKS, launcher=torchrun("--nproc_per_node=2", "--max-restarts=2")) as run:
        run.until(lambda: job.step() >= 10)
        os.kill(job.ranks()[1], signal.SIGKILL)
        assert run.wait() == 0, run.said()
    same(job, whole, within=1e-4)


@pytest.mark.slow
def test_a_hundred_at_random(make_job, whole, tmp_path):
    """Half at a random time, half at a random write; each run is killed until it reaches its end."""
    chance, kills, runs = random.Random(15), 0, 0
    while kills < 100:
        job = make_job(tmp_path / f"{runs}")
        code = None
        while code != 0:
            at_write = chance.random() < 0.5
            # Without TensorBoard, whose files are in order only where a second passes between two starts.
            run = job.fork("log.sinks=[jsonl]", attack=Attack(".", chance.randint(1, 40)) if at_write else None)
            if not at_write:
                time.sleep(chance.uniform(0.05, 1.0))
                run.process.kill()
            code = run.wait()
            assert code in (0, -signal.SIGKILL), run.said()
            kills += code != 0
        runs += 1
        same(job, whole)
    print(f"{kills} kills of {runs} runs")


@pytest.mark.slow
def test_a_hundred_of_one_of_four_ranks(make_job, tmp_path):
    """One run under torchrun, which starts its ranks again each time, and whose curve is that of one process."""
    longer = {
        **SMOOTH,
        "schedule": {"epochs": 500},
        "checkpoint": {"every_steps": 10},
        "log": {"sinks": ["jsonl"]},
    }
    chance, whole, job = random.Random(15), make_job(tmp_path / "whole", **longer), make_job(tmp_path / "run", **longer)
    whole.finish()
    with job.start("data.batch_size=4", launcher=torchrun("--nproc_per_node=4", "--max-restarts=200")) as run:
        before = set()
        for _ in range(100):
            run.until(lambda old=before: len(set(job.ranks().values()) - old) == 4)
            ranks = job.ranks()
            if chance.random() < 0.2:  # while it starts
                time.sleep(chance.uniform(0, 4))
            else:
                step = job.step()
                run.until(lambda begun=step: job.step() != begun)  # the log is cut to the checkpoint, then grows
                time.sleep(chance.uniform(0, 1))
            os.kill(ranks[chance.randrange(4)], signal.SIGKILL)
            before = set(ranks.values())
        assert run.wait(600) == 0, run.said()
    same(job, whole, within=1e-2)
