"""The same steps under ``torch.compile``: the same losses, how much faster, and how long it takes to compile."""

import time

import torch

from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.step import NETWORKS, Network, speed
from benchmarks.gpu.training import fixed_batches, group, largest_difference, losses, trainer
from benchmarks.measure import forget
from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.build import check_compiler

_STEPS = 5  # whose losses are compared


def run(report: Report, setting: Setting) -> None:
    """Each network eager and compiled, in turns."""
    if setting.device == "cpu":
        report.skip("torch.compile", "it is of use on a GPU")
        return
    with group(setting) as world:
        try:
            check_compiler(setting.place)
        except UserError as error:
            report.skip("torch.compile", str(error))
            return
        for network in NETWORKS:
            if setting.seconds < 15:
                report.skip(f"{network.name}, compiled", "no time")
                continue
            try:
                _network(report, setting, world, network)
            except torch.cuda.OutOfMemoryError:
                report.skip(f"{network.name}, compiled", "does not fit into memory")
            forget(setting.place)


def _network(report: Report, setting: Setting, world: World, network: Network) -> None:
    gentle = "optim.lr=0.00001"  # so that rounding stays rounding over some steps
    eager = trainer(setting, world, f"{network.name}_not_compiled", *network.overrides(128, 2000), gentle)
    batches = fixed_batches(setting, world, eager, 2)
    theirs = losses(eager, batches, _STEPS)
    plain = speed(report, setting, eager, network.name, "eager, beside compiled")
    del eager
    forget(setting.place)

    options = [*network.overrides(128, 2000, compile=True), gentle]
    compiled = trainer(setting, world, f"{network.name}_compiled", *options)
    began = time.perf_counter()
    ours = losses(compiled, batches, _STEPS)
    of = dict(network=network.name)
    report.figure("first steps with compiling", time.perf_counter() - began, "s", **of)
    worst = largest_difference(ours, theirs)
    same = report.at_most("losses of compiled steps against eager ones", worst, 0.02, "relative", **of)
    images = speed(report, setting, compiled, network.name, "compiled")
    if same:
        report.figure("compiled over eager", images / plain, "x", **of)
