"""Images a second of whole training steps, and how much of a step is spent waiting for data."""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import finish
from benchmarks.results import Row
from pipelines.loading.loader import Batch
from train.config import load_config
from train.distributed import joined
from train.trainer import Trainer

_WARM_UP = 3


def measure_step(config: Path, overrides: list[str], rounds: int) -> list[Row]:
    """Rows {name, images_per_second, data_wait} of a config's training step, fed by its loader and by one fixed batch.

    The two alternate in rounds of ten steps; medians are over the rounds. ``data_wait`` is the share of the step in
    which training waits for a batch.
    """
    with TemporaryDirectory() as output:
        settings = load_config(config, [*overrides, f"output={output}", "log.sinks=[jsonl]", "verify.bins=[]"])
        with joined(settings.device, settings.dist.start_timeout) as world:
            return race(Trainer(settings, world), steps=10, rounds=rounds)


def race(trainer: Trainer, steps: int, rounds: int) -> list[Row]:
    """The rows of ``measure_step`` of a trainer, whose loader is closed then."""
    batches = iter(trainer.loader)
    fixed: list[Batch] = [next(batches)]
    for _ in range(_WARM_UP):
        trainer.train_step(batches)
    speeds: dict[str, list[float]] = {"fed by the loader": [], "one fixed batch": []}
    waits = []
    for _ in range(rounds):
        for name, speed in speeds.items():
            feed = batches if name == "fed by the loader" else iter(fixed * (steps * trainer.accumulate))
            finish(trainer.world.device)
            trainer.loader.take_wait()
            began = time.perf_counter()
            for _ in range(steps):
                trainer.train_step(feed)
            finish(trainer.world.device)
            seconds = time.perf_counter() - began
            speed.append(steps * trainer.global_batch / seconds)
            if feed is batches:
                waits.append(trainer.loader.take_wait() / seconds)
    trainer.loader.close()
    rows = [{"name": name, "images_per_second": statistics.median(speed)} for name, speed in speeds.items()]
    rows[0]["data_wait"] = statistics.median(waits)
    ratios = [a / b for a, b in zip(*speeds.values())]
    rows[0]["of_fixed_batch"] = statistics.median(ratios)
    return rows
