"""The planner beside what this machine does: memory and time of real training steps on a CPU.

    python -m benchmarks.plan
    python -m benchmarks.plan --networks r18 --rates 1

Memory is what torch's allocator holds at most in the second step of a run, as its profiler tells every allocation,
against what ``train.planning`` finds without data and weights. Each is measured in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train/run.py sets it; read at import of torch

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.results import RESULTS, Row, save, show
from pipelines.common.command import run
from train.config import Config
from train.distributed import joined
from train.planning.step import Setting, trace_step
from train.trainer import Trainer

MIB = 2**20
# Batches that take some hundred MiB each.
NETWORKS = {"mbf": 32, "r18": 16, "r50": 8, "vit_t": 16, "vit_s": 8}
IDENTITIES = 20_000
_SECOND_STEP = "second step"


def allocated(config: Config) -> int:
    """The most bytes that torch's allocator holds on the CPU in the second step of a run."""
    with joined("cpu", 60) as world, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = Trainer(config, world)
        batches = iter(trainer.loader)
        trainer.train_step(batches)
        with record_function(_SECOND_STEP):
            trainer.train_step(batches)
        trainer.loader.close()
    assert profiler.profiler is not None  # it has run
    results = profiler.profiler.kineto_results
    assert results is not None
    events = sorted(results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == _SECOND_STEP)
    most = now = 0
    for event in events:
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now) if event.start_ns() >= begin else most
    return most


def planned(config: Config, identities: int) -> int:
    """What the planner finds for it. Decoded batches are DALI's and not torch's."""
    parts = trace_step(config, Setting(False, 2**40, 1, identities)).memory.parts
    return sum(size for use, size in parts.items() if use != "decoded batches")


def measure(name: str, sample_rate: float) -> Row:
    """A row of the table, for a process of its own."""
    with TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "data": {"train": str(_images(Path(folder))), "batch_size": NETWORKS[name], "threads": 1},
                "model": {"name": name},
                "head": {"num_classes": IDENTITIES, "sample_rate": sample_rate},
                "optim": {"name": "adamw" if name.startswith("vit") else "sgd", "lr": 0.001},
                "schedule": {"epochs": 10},
                "precision": "fp32",
                "device": "cpu",
                "log": {"sinks": []},
                "output": f"{folder}/run",
            }
        )
        found, expected = allocated(config) / MIB, planned(config, IDENTITIES) / MIB
    row: Row = {"network": name, "batch": NETWORKS[name], "optimiser": config.optim.name, "sample_rate": sample_rate}
    return row | {"measured_mib": found, "planned_mib": expected, "ratio": expected / found}


def _images(folder: Path) -> Path:
    """Two identities of 32 images each."""
    generator = np.random.default_rng(0)
    for identity in ("a", "b"):
        (folder / "faces" / identity).mkdir(parents=True)
        for image in range(32):
            pixels = generator.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "faces" / identity / f"{image}.jpg")
    return folder / "faces"


def measure_apart(name: str, sample_rate: float) -> Row:
    """``measure`` in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan", "--measure", json.dumps([name, sample_rate])]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ChildProcessError(f"measuring {name} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1], help="of head.sample_rate")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    rows = [measure_apart(name, rate) for name, rate in product(args.networks, args.rates)]
    show(rows, f"memory of a step on a CPU, {IDENTITIES:,} identities")
    print(save("plan", rows, args.output))


if __name__ == "__main__":
    run(main)
