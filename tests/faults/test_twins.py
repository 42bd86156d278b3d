"""Two runs on one output, and a finished one that is started again, also with parts of it deleted."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.support import same


def refused(job, *words):
    """Starting it ends in one line with the words and changes nothing."""
    before, run = job.files(), job.fork()
    assert run.wait() == 2, run.said()
    (line,) = run.said().splitlines()
    assert line.startswith("error: ") and str(job.output) in line and all(word in line for word in words), line
    assert job.files() == before


def stop(process: int) -> None:
    """SIGSTOP, and wait until the last of its threads stands."""
    os.kill(process, signal.SIGSTOP)
    tasks = Path(f"/proc/{process}/task")
    while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in tasks.glob("*/stat")):
        time.sleep(0.001)


def test_a_second_run_on_one_output(job, whole):
    """While the first one stands still, so that nothing else changes its files; then it goes on as if alone."""
    first = job.fork()
    while job.step() < 10:
        time.sleep(0.002)
    stop(first.process.pid)
    try:
        refused(job, "in use")
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait() == 0, first.said()
    same(job, whole)


def test_a_finished_run(job):
    """Started again it changes nothing; without its checkpoints it is not overwritten."""
    job.finish()
    before = job.files()
    job.finish()
    assert job.files() == before
    shutil.rmtree(job.output / "checkpoints")
    refused(job, "model.pt")
    (job.output / "model.pt").unlink()
    refused(job, "best.pt")
    (job.output / "best.pt").unlink()
    refused(job, "no checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(
    "deleted", ["model.pt", "best.pt", "log.jsonl", "config.yaml", "quarantine.jsonl", "tensorboard"]
)
def test_deleted_parts_of_a_finished_run(whole, make_job, tmp_path, deleted):
    """Its checkpoints are there: model.pt is written again, the rest does not end it."""
    job = make_job(tmp_path)
    shutil.copytree(whole.output, job.output)
    path = job.output / deleted
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    job.finish()
    assert job.checkpoints == whole.checkpoints
    assert (job.output / "model.pt").read_bytes() == (whole.output / "model.pt").read_bytes()
