"""The loader by way of decoding: alone, and beside a training step of r50; so the default is chosen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.part import Report, Setting
from benchmarks.measure import finish
from benchmarks.models import WAYS, steps
from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from pipelines.sources.source import Source

WANTED = 20_000  # images a second, alone in the best way
MOST_SLOWED = 0.02  # by which the best way may slow down the step beside it
_TURNS = 3  # of steps with and without the loader


def ways(device: str) -> list[dict[str, Any]]:
    """Options of ``Loader``, what is likely to win first."""
    cpu = [dict(decode_on="cpu", threads=threads) for threads in ((4, 8, 2, 1) if device == "cuda" else (1, 2))]
    gpu = [dict(decode_on="gpu", hw_decoder_load=load, threads=4) for load in (0.65, 1.0, 0.0)]
    return cpu + gpu if device == "cuda" else cpu


def run(report: Report, setting: Setting) -> None:
    """Every way at each batch size, as long as there is time; then what must hold of the best one."""
    source = open_source(setting.data)
    batches = (4,) if setting.small else (128, 384)
    alone: list[float] = []
    slowed: list[float] = []
    for batch in batches:
        try:
            for speed, loss in _at(report, setting, source, batch):
                alone.append(speed)
                slowed.append(loss)
        except torch.cuda.OutOfMemoryError:
            report.skip(f"batch {batch}", "the step beside the loader does not fit into memory")
    if not alone:
        report.skip("which way is best", "nothing was measured")
        return
    report.figure("images/s alone, best way", max(alone), "images/s")
    if setting.device == "cpu":
        report.skip("images/s and slowdown against their limits", "they are a GPU's")
        return
    report.at_least("images/s alone, best way", max(alone), WANTED, "images/s")
    report.at_most("step slowed down in the best way", 100 * min(slowed), 100 * MOST_SLOWED, "%")


def _at(report: Report, setting: Setting, source: Source, batch: int) -> Iterator[tuple[float, float]]:
    """Images a second of each way at a batch size, and the share by which it slows down a step."""
    network, precision = ("mbf", "channels-last") if setting.small else ("r50", "channels-last bf16")
    step = steps(network, WAYS[precision], batch, setting.place)["training"]
    for _ in range(3):
        step()
    for way in ways(setting.device):
        if setting.seconds < 6 and not setting.small:
            report.skip(f"batch {batch}, {way}", "no time")
            continue
        of = dict(batch=batch, **way)
        with _loader(source, batch, setting, way) as loader:
            speed, cores = _alone(loader, batch, setting)
            report.figure("loader alone", speed, "images/s", **of)
            report.figure("cores used", cores, "", **of)
            loss = _slowdown(loader, step, setting)
            report.figure("step slowed down by", 100 * loss, "%", **of)
        yield speed, loss


def _turn(setting: Setting) -> float:
    """Seconds of one measurement."""
    return 0.2 if setting.small else 0.7


@contextmanager
def _loader(source: Source, batch: int, setting: Setting, way: dict[str, Any]) -> Iterator[Loader]:
    loader = Loader(source, batch_size=batch, seed=0, device=setting.place, **way)
    try:
        yield loader
    finally:
        loader.close()


def _alone(loader: Loader, batch: int, setting: Setting) -> tuple[float, float]:
    """Images a second, and the cores that this process keeps busy with them."""
    for _ in range(5):  # the pipeline starts, and what lay ready is used up
        next(loader)
    finish(setting.place)
    images, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < _turn(setting):
        next(loader)
        images += batch
    finish(setting.place)
    seconds = time.perf_counter() - began
    return images / seconds, (time.process_time() - used) / seconds


def _slowdown(loader: Loader, step: Any, setting: Setting) -> float:
    """By what share a step takes longer where the loader brings a batch for each; the best of some turns of both."""

    def seconds(fed: bool, count: int) -> float:
        finish(setting.place)
        began = time.perf_counter()
        for _ in range(count):
            if fed:
                next(loader)
            step()
        finish(setting.place)
        return (time.perf_counter() - began) / count

    count = max(2, int(_turn(setting) / 2 / seconds(False, 2)))
    pairs = [(seconds(False, count), seconds(True, count)) for _ in range(_TURNS)]
    return min(fed for _, fed in pairs) / min(bare for bare, _ in pairs) - 1
