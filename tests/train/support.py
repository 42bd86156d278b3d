"""Whole runs by the command a user types, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.sharded import read_sharded

RUN = str(Path(__file__).with_name("plain_run.py"))


def command(config, *overrides, ranks=1):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, RUN, "--config", str(config), *overrides]


def finish(*args, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def curve(folder):
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def close(ours, theirs):
    """Equal steps, and losses equal up to the rounding that a few steps of training carry on."""
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs)) < 1e-4 * theirs[0][1]


def learnt(output):
    """The final weights, and the centres of the last checkpoint."""
    checkpoint = max((output / "checkpoints").iterdir())
    return torch.load(output / "model.pt", weights_only=True) | {"centres": read_sharded(checkpoint, "head")["weight"]}


def curves(folder):
    """The curves that TensorBoard finds, [(step, value)] by name."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
