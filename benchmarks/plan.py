"""The planner beside what this machine does: memory and time of real training steps on a CPU.

    python -m benchmarks.plan
    python -m benchmarks.plan --networks r18 --rates 1 --steps

Memory is what torch's allocator holds at most in the second step of a run, as its profiler tells every allocation,
against what ``train.planning`` finds without data and weights. Time is that of steps of one batch, against the sum of
their operators, each timed alone. Each row is measured in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train/run.py sets it; read at import of torch

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.results import RESULTS, Row, save, show
from pipelines.common.command import run
from pipelines.loading.batch import Batch
from train.config import Config, load_config
from train.distributed import joined
from train.planning.calibration import this_device
from train.planning.devices import links_of
from train.planning.forecast import forecast
from train.planning.step import Setting, trace_step
from train.planning.timing import OperatorTimer
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


def measure_memory(name: str, sample_rate: float) -> Row:
    """A row of the table of memory."""
    with TemporaryDirectory() as folder:
        config = _config(folder, name, sample_rate)
        found, expected = allocated(config) / MIB, planned(config, IDENTITIES) / MIB
    row: Row = {"network": name, "batch": NETWORKS[name], "optimiser": config.optim.name, "sample_rate": sample_rate}
    return row | {"measured_mib": found, "planned_mib": expected, "ratio": expected / found}


def measure_time(name: str) -> Row:
    """A row of the table of times.

    Half of the real steps come before the operators are timed and half behind, so that a change of what else the
    machine does falls on both.
    """
    with TemporaryDirectory() as folder:
        config = _config(folder, name) if name in NETWORKS else _quickstart(folder)
        device, setting = this_device("cpu"), Setting(False, 2**40, 1, IDENTITIES)
        with joined("cpu", 60) as world:
            trainer = Trainer(config, world)
            batch = next(iter(trainer.loader))
            trainer.loader.close()
            seconds = _steps(trainer, batch)
            trace = trace_step(config, setting, timer=OperatorTimer())
            seconds += _steps(trainer, batch)
    expected = forecast(config, setting, trace, device, links_of(device))
    found, step = median(seconds), expected.step - expected.decoding
    row: Row = {"step": name, "batch": config.data.batch_size}
    return row | {"measured_ms": 1e3 * found, "planned_ms": 1e3 * step, "ratio": step / found}


def _steps(trainer: Trainer, batch: Batch) -> list[float]:
    """Seconds of some steps of one batch, behind one that warms up."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        trainer.train_step(iter([batch]))
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _config(folder: str, name: str, sample_rate: float = 1.0) -> Config:
    return Config.model_validate(
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


_ONE_PROCESS = ["data.batch_size=128", "data.threads=2", "schedule.epochs=100"]


def _quickstart(folder: str) -> Config:
    data = f"data.train={_images(Path(folder))}"
    overrides = [data, f"head.num_classes={IDENTITIES}", "verify.bins=[]", f"output={folder}/run", "device=cpu"]
    return load_config(Path(__file__).parents[1] / "configs/quickstart.yaml", [*overrides, *_ONE_PROCESS])


def _images(folder: Path) -> Path:
    """Two identities of 64 images each."""
    generator = np.random.default_rng(0)
    for identity in ("a", "b"):
        (folder / "faces" / identity).mkdir(parents=True)
        for image in range(64):
            pixels = generator.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "faces" / identity / f"{image}.jpg")
    return folder / "faces"


MEASUREMENTS: dict[str, Callable[..., Row]] = {"memory": measure_memory, "time": measure_time}


def measure_apart(what: str, *arguments: str | float) -> Row:
    """One of `MEASUREMENTS` in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan", "--measure", json.dumps([what, *arguments])]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ChildProcessError(f"measuring {what} of {arguments} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="for memory")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1], help="of head.sample_rate")
    parser.add_argument("--steps", nargs="*", default=["quickstart", "r18"], help="for time: quickstart or a network")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, *arguments = json.loads(args.measure)
        print(json.dumps(MEASUREMENTS[what](*arguments)))
        return
    rows = [measure_apart("memory", name, rate) for name, rate in product(args.networks, args.rates)]
    show(rows, f"memory of a step on a CPU, {IDENTITIES:,} identities")
    times = [measure_apart("time", name) for name in args.steps]
    show(times, f"time of a step on a CPU, {IDENTITIES:,} identities")
    print(save("plan", rows + times, args.output))


if __name__ == "__main__":
    run(main)
