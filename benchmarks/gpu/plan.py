"""What the planner expects of the steps that the part ``step`` measures, on this GPU."""

import torch

from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.step import ways
from benchmarks.gpu.training import QUICKSTART, overrides
from train.config import load_config
from train.planning.data_sets import data_size
from train.planning.devices import known_device, links_of
from train.planning.plan import Cluster, make_plan


def run(report: Report, setting: Setting) -> None:
    """Images a second and memory; without a GPU those of an H100."""
    device = known_device(torch.cuda.get_device_name() if setting.device == "cuda" else "H100")
    if device is None:
        report.skip("the plan", "this GPU is none of those that the planner knows")
        return
    for network, way, more in ways(setting):
        config = load_config(QUICKSTART, overrides(setting, setting.scratch / "planned", *more))
        plan = make_plan(config, Cluster(device, links_of(device), 1), data_size(config), borders=False)
        of = dict(network=network.name, way=way, device=device.name)
        report.figure("images/s of a training step, planned", plan.forecast.images_per_second, "images/s", **of)
        report.figure("peak memory, planned", plan.memory.total / 2**30, "GiB", **of)
