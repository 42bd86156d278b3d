"""Whole runs by the command a user types, and what they leave."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluate.features.ranks import World
from models.registry import BACKBONES
from models.sharded import read_sharded
from tests.train.plain_run import Plain
from train.config import load_config
from train.trainer import train

RUN = str(Path(__file__).with_name("plain_run.py"))


def command(config, *overrides, ranks=1):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, RUN, "--config", str(config), *overrides]


def finish_in_processes(*args, **kwargs):
    """A run to its end as a user starts it; returns what it prints. The fixture ``finish`` is the quick way."""
    result = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def trained(path, overrides):
    """A run to its end on a rank of the suite's pool; returns what it prints."""
    BACKBONES["plain"] = Plain
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train(load_config(path, overrides), World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))
    return said.getvalue()


def spoilt(batches):
    """Batches in each of which an image is not finite."""
    for batch in batches:
        batch.images[0] = torch.nan
        yield batch


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
