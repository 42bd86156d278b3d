"""scripts/slurm.sh with srun and scontrol played by others: it stops in order, queues itself again, and goes on."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.support import gone

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/slurm.sh"

# srun hands a signal on to its task, but at SIGTERM it kills it.
SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    del words[0]
task = subprocess.Popen(words)
signal.signal(signal.SIGUSR1, lambda *_: task.send_signal(signal.SIGUSR1))
signal.signal(signal.SIGTERM, lambda *_: task.kill())
sys.exit(task.wait() % 256)
"""
SCONTROL = """
import os, sys
if sys.argv[1:] == ["show", "hostnames", "m[1-1]"]:
    print("localhost")
else:
    with open(os.environ["ASKED"], "a") as file:
        print(*sys.argv[1:], file=file)
"""
TORCHRUN = """
import os, sys
os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *sys.argv[1:]])
"""


SMALL = "model={name: mbf, width: 0.0625, embedding_size: 16, input_size: 32}"  # train/run.py knows no test's network


@pytest.fixture
def batch(tmp_path):
    """How SLURM starts the script: a copy elsewhere, in the folder where it was submitted, on a job of one machine."""
    commands = {"srun": SRUN, "scontrol": SCONTROL, "torchrun": TORCHRUN}
    for name, code in commands.items():
        play(tmp_path, name, code)
    shutil.copy(SCRIPT, tmp_path / "slurm_script")
    variables = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "m[1-1]", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1"}
    variables |= {"ASKED": str(tmp_path / "asked"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    launcher = ["bash", str(tmp_path / "slurm_script")]
    return {"launcher": launcher, "env": {**os.environ, **variables}, "cwd": SCRIPT.parents[1]}


def play(folder, name, code):
    """Put a command first on the path."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}{code}")
    path.chmod(0o755)


@pytest.mark.slow
def test_stopped_before_its_time_is_over(job, batch, tmp_path):
    asked, overrides = tmp_path / "asked", ["log.sinks=[jsonl]", SMALL]
    with job.start(*overrides, **batch) as run:
        run.until(lambda: job.step() >= 6)
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 1, run.said()
        (line,) = [line for line in run.said().splitlines() if line.startswith("stopped by SIGUSR1")]
        step = job.step()
        assert f"step_{step:09d}" in line and f"step_{step:09d}" == job.checkpoints[-1]
        assert asked.read_text() == "requeue 4711\n" and gone(job, 1)
    with job.start(*overrides, **batch) as run:
        assert run.wait() == 0 and f"resuming at step {step}" in run.said(), run.said()
    assert job.step() == 60
    assert asked.read_text() == "requeue 4711\n", "a finished run is not queued again"


def test_a_failure_is_not_queued_again(job, batch, tmp_path):
    play(tmp_path, "torchrun", "\nimport sys; print(*sys.argv[1:]); sys.exit(3)")
    with job.start("optim.lr=1", **batch) as run:
        assert run.wait() == 3
        assert "--nnodes=1 --nproc-per-node=1" in run.said() and "--rdzv-endpoint=localhost:24711" in run.said()
        assert run.said().endswith(f"train/run.py --config {job.config} optim.lr=1\n")
    assert not (tmp_path / "asked").exists()
