"""Runs to measure with: a trainer of any network on the acceptance run's images, fixed batches, its losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import ROOT
from benchmarks.gpu.part import Setting
from evaluate.features.ranks import World
from pipelines.loading.loader import Batch, Loader
from pipelines.sources import open_source
from train.config import load_config
from train.distributed import joined
from train.trainer import Trainer

# A small network, which learns these images in some steps.
TINY = [
    "model={name: mbf, width: 0.125, embedding_size: 128, input_size: 56}",
    "head={margin: arcface, s: 24, m: 0.2}",
    "optim={name: sgd, lr: 0.01}",
    "precision=fp32",
    "data.batch_size=16",
]


def overrides(setting: Setting, output: Path, *more: str) -> list[str]:
    """Of ``configs/quickstart.yaml``: what every run here has in common, then its own."""
    shared = [
        f"data.train={setting.data}",
        f"output={output}",
        f"device={setting.device}",
        "schedule={name: constant, epochs: 1000}",
        "verify.bins=[]",
        "log.sinks=[jsonl]",
        "data.threads=2",
    ]
    return [*shared, *more]


QUICKSTART = ROOT / "configs/quickstart.yaml"


@contextmanager
def group(setting: Setting) -> Iterator[World]:
    """This process's ranks: all of torchrun's, or itself."""
    with joined(setting.device, 120) as world:
        yield world


def trainer(setting: Setting, world: World, name: str, *more: str, device: str | None = None) -> Trainer:
    """A run that has not begun, in a folder ``name``; on the world's device or another one."""
    config = load_config(QUICKSTART, overrides(setting, setting.scratch / name, *more))
    place = World(torch.device(device), world.rank, world.size) if device else world
    return Trainer(config, place)


def fixed_batches(setting: Setting, world: World, like: Trainer, count: int) -> list[Batch]:
    """Some batches as a run's loader gives them, decoded on the processor, for every device the same."""
    loader = Loader(
        open_source(setting.data),
        batch_size=like.config.data.batch_size,
        seed=1,
        image_size=like.config.model.input_size,
        num_uniforms=1 + like.learner.recipe.num_uniforms,
        clean_view=like.learner.recipe.clean_view,
        rank=world.rank,
        world_size=world.size,
    )
    batches = list(islice(loader, count))
    loader.close()
    return batches


def on(batch: Batch, device: torch.device) -> Batch:
    """A copy of the batch on a device."""
    clean = None if batch.clean is None else batch.clean.to(device)
    return Batch(batch.images.to(device), batch.labels.to(device), batch.indices, batch.uniforms, clean)


def losses(run: Trainer, batches: Sequence[Batch], steps: int) -> list[float]:
    """Of so many steps through the batches, in turns; NaN where one was not finite. The host waits at the end only."""
    feed, sums = cycle([on(batch, run.world.device) for batch in batches]), []
    for _ in range(steps):
        run.meter.window.zero_()
        run.train_step(feed)
        sums.append(run.meter.window.clone())
    total, finite = torch.stack(sums).T
    return (total / finite).tolist()


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of two curves of losses, relative; NaN where a loss of either is."""
    return float(np.abs(np.subtract(ours, theirs) / theirs).max())
