"""Whole training steps: exactness against a CPU, falling losses, images a second, and where the time goes."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import TINY, fixed_batches, group, largest_difference, losses, on, trainer
from benchmarks.measure import finish, forget, mean_time, peak_memory
from benchmarks.models import ceiling, needed_flop
from benchmarks.step import race
from evaluate.features.ranks import World
from train.planning.devices import known_device
from train.trainer import Trainer

_STEPS = 60  # in which the loss has to fall


@dataclass(frozen=True)
class Network:
    """A network to train as it is usually trained."""

    name: str
    optimizer: str

    def overrides(self, batch: int, identities: int, precision: str = "bf16", **model: object) -> list[str]:
        """Of a config, with more of the model's keys."""
        more = "".join(f", {key}: {str(value).lower()}" for key, value in model.items())
        return [
            f"model={{name: {self.name}, embedding_size: 512{more}}}",
            f"head={{margin: arcface, num_classes: {identities}}}",
            f"optim={self.optimizer}",
            f"precision={precision}",
            f"data.batch_size={batch}",
        ]


SGD, ADAMW = "{name: sgd, lr: 0.01, weight_decay: 0.0005}", "{name: adamw, lr: 0.0001, weight_decay: 0.1}"
NETWORKS = [Network("r50", SGD), Network("r100", SGD), Network("vit_l", ADAMW)]
SMALL = [Network("mbf", SGD)]


def run(report: Report, setting: Setting) -> None:
    """Exactness, then each network, vit_l with its activations recomputed, too."""
    with group(setting) as world:
        exactness(report, setting, world)
        product = ceiling(torch.bfloat16 if setting.device == "cuda" else torch.float32, setting.place)
        report.figure("best product of large matrices", product / 1e12, "TFLOP/s")
        for network, way, config in ways(setting):
            if setting.seconds < 12 and not setting.small:
                report.skip(f"{network.name}, {way}", "no time")
                continue
            _network(report, setting, world, network, way, config, product)
            forget(setting.place)
    if setting.device == "cuda":
        _optimizers(report, setting)


def exactness(report: Report, setting: Setting, world: World) -> None:
    """Losses of 20 steps in float32 against the same on the CPU."""
    gentle = [*TINY, "optim.lr=0.00001"]  # at a usual rate a last bit decides on the losses of so small a network
    here = trainer(setting, world, "exact", *gentle)
    batches = fixed_batches(setting, world, here, 4)
    there = trainer(setting, world, "exact_cpu", *gentle, "device=cpu", device="cpu")
    with torch.no_grad():  # centres are drawn on the device, whose generator is another
        there.learner.head.weight.copy_(here.learner.head.weight)
    ours, theirs = losses(here, batches, 20), losses(there, batches, 20)
    worst = largest_difference(ours, theirs)
    report.at_most("losses of 20 steps in float32 against the CPU's", worst, 1e-3, "relative")


def ways(setting: Setting) -> Iterator[tuple[Network, str, list[str]]]:
    """Each network in each way that is measured, and what a config says of it."""
    batch, identities, precision = (4, 1000, "fp32") if setting.small else (128, 93_431, "bf16")
    for network in SMALL if setting.small else NETWORKS:
        yield network, "eager", network.overrides(batch, identities, precision)
        if network.name.startswith("vit"):
            yield network, "recompute", network.overrides(batch, identities, precision, checkpoint_activations=True)


def _network(
    report: Report, setting: Setting, world: World, network: Network, way: str, config: list[str], product: float
) -> None:
    try:
        run = trainer(setting, world, f"{network.name}_{way}", *config)
        measure(report, setting, run, network.name, way, product)
    except torch.cuda.OutOfMemoryError:
        report.skip(f"{network.name}, {way}", "does not fit into memory")


def measure(report: Report, setting: Setting, run: Trainer, network: str, way: str, product: float) -> None:
    """Everything about a trainer's step."""
    of = dict(network=network, way=way)
    run.meter.start(0)
    batches = fixed_batches(setting, run.world, run, 2)
    curve = losses(run, batches, 12 if setting.small else _STEPS)
    tail = len(curve) // 6
    first, last = statistics.mean(curve[:tail]), statistics.mean(curve[-tail:])
    finite = all(map(math.isfinite, curve))
    report.holds("the loss is finite and falls", finite and last < first, f"{first:.2f} to {last:.2f}", **of)
    images = speed(report, setting, run, network, way)
    flop = needed_flop(network)["training"]
    report.figure("share of the measured product", 100 * images * flop / product, "%", **of)
    if setting.device == "cuda":
        if device := known_device(torch.cuda.get_device_name()):
            sheet = device.flops["bf16"]
            name = f"share of {sheet / 1e12:.0f} TFLOP/s, the data sheet's"
            report.figure(name, 100 * images * flop / sheet, "%", **of)
        report.figure("peak memory", peak_memory(setting.place) / 2**30, "GiB", **of)
        _profile(report, setting, run, of)
    rows = race(run, steps=2 if setting.small else 10, rounds=1 if setting.small else 2)
    report.figure("images/s fed by the loader", rows[0]["images_per_second"], "images/s", **of)
    report.figure("of the step waiting for data", 100 * rows[0]["data_wait"], "%", **of)


def speed(report: Report, setting: Setting, run: Trainer, network: str, way: str) -> float:
    """Images a second from one fixed batch, the host's part of a step beside it."""
    of = dict(network=network, way=way)
    feed = repeat(on(fixed_batches(setting, run.world, run, 1)[0], setting.place))
    for _ in range(2 if setting.small else 5):
        run.train_step(feed)
    calls = 2 if setting.small else 20
    seconds = min(mean_time(lambda: run.train_step(feed), setting.place, calls) for _ in range(2))
    images = run.global_batch / seconds
    report.figure("images/s of a training step", images, "images/s", **of)
    report.figure("step", 1e3 * seconds, "ms", **of)
    host = []
    for _ in range(5):  # from an idle device, so that the host never waits for room in its queue, or hardly
        finish(setting.place)
        began = time.perf_counter()
        run.train_step(feed)
        host.append(time.perf_counter() - began)
    finish(setting.place)
    report.figure("host's part of a step", 1e3 * statistics.median(host), "ms", **of)
    return images


def _profile(report: Report, setting: Setting, run: Trainer, of: dict[str, str]) -> None:
    """The share of ten steps in which the GPU has something to do."""
    feed = repeat(on(fixed_batches(setting, run.world, run, 1)[0], setting.place))
    finish(run.world.device)
    kind = ProfilerActivity.CUDA if setting.device == "cuda" else ProfilerActivity.CPU
    if kind not in supported_activities():
        report.skip("GPU busy", "PyTorch's profiler does not find CUPTI")
        return
    with profile(activities=[kind]) as profiler:
        began = time.perf_counter()
        for _ in range(10):
            run.train_step(feed)
        finish(run.world.device)
        seconds = time.perf_counter() - began
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    if not spans:
        report.skip("GPU busy", "the profiler sees nothing of this GPU")
        return
    report.figure("GPU busy, under the profiler", 100 * covered(spans) / 1e6 / seconds, "%", **of)
    report.figure("kernels and copies a step", round(len(spans) / 10), "", **of)


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of what the spans cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _optimizers(report: Report, setting: Setting) -> None:
    """AdamW over as many numbers as vit_l has: fused, and by torch's lists."""
    sizes = [1024 * 1024] * 240
    for fused in (True, False):
        parameters = [torch.zeros(size, device=setting.place, requires_grad=True) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=fused, foreach=not fused)
        optimizer.step()
        seconds = mean_time(optimizer.step, setting.place, 10)
        report.figure("AdamW of 252 million numbers", 1e3 * seconds, "ms", way="fused" if fused else "foreach")
        del parameters, optimizer
        forget(setting.place)
