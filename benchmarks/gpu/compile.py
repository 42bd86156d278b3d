"""The same steps under ``torch.compile``: the same losses, how much faster, and how long it takes to compile."""

import time

import torch

from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.step import NETWORKS, Network, forget, speed
from benchmarks.gpu.training import fixed_batches, group, losses, trainer
from evaluate.features.ranks import World
from models.modes import evaluating

_STEPS = 5  # whose losses are compared


def run(report: Report, setting: Setting) -> None:
    """Each network eager and compiled, in turns."""
    if setting.device == "cpu":
        report.skip("torch.compile", "it is of use on a GPU")
        return
    with group(setting) as world:
        for network in NETWORKS:
            if setting.seconds < 15:
                report.skip(f"{network.name}, compiled", "no time")
                continue
            try:
                _network(report, setting, world, network)
            except torch.cuda.OutOfMemoryError:
                report.skip(f"{network.name}, compiled", "does not fit into memory")
            forget(setting)


def _network(report: Report, setting: Setting, world: World, network: Network) -> None:
    gentle = "optim.lr=0.00001"  # so that rounding stays rounding over some steps
    eager = trainer(setting, world, f"{network.name}_not_compiled", *network.overrides(128, 1000), gentle)
    batches = fixed_batches(setting, world, eager, 2)
    theirs = losses(eager, batches, _STEPS)
    plain = speed(report, setting, eager, network.name, "eager, beside compiled")
    del eager
    forget(setting)

    options = [*network.overrides(128, 1000, compile=True), gentle]
    compiled = trainer(setting, world, f"{network.name}_compiled", *options)
    began = time.perf_counter()
    ours = losses(compiled, batches, _STEPS)
    of = dict(network=network.name)
    report.figure("first steps with compiling", time.perf_counter() - began, "s", **of)
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs))
    same = report.at_most("losses of compiled steps against eager ones", worst, 0.02, "relative", **of)
    images = speed(report, setting, compiled, network.name, "compiled")
    if same:
        report.figure("compiled over eager", images / plain, "x", **of)
    began = time.perf_counter()
    with evaluating(compiled.backbone), torch.inference_mode():
        for count in (256, 100):  # a verification set's batches, the last of which is short
            compiled.backbone(torch.zeros(count, 3, 112, 112, device=setting.place))
    torch.cuda.synchronize()
    report.figure("evaluation compiled for other batch sizes", time.perf_counter() - began, "s", **of)
