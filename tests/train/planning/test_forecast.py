"""The roofline against sums by hand."""

from dataclasses import replace

import pytest
from torch import nn

from models import create_model
from tests.train.planning.support import config
from train.planning.devices import Device, links_of, named_device
from train.planning.forecast import forecast, part_time
from train.planning.step import Setting, trace_step
from train.planning.traffic import Exchange
from train.planning.work import Work

DEVICE = Device(
    "paper",
    memory=2**40,
    flops={"bf16": 100.0, "fp32": 10.0},
    bandwidth=10.0,
    link="pcie4",
    matmul_share=0.5,
    conv_share=0.25,
    memory_share=0.8,
    launch=0.5,
    decode=1e9,
    cores=2,
)


def work(kind, precision, flops, moved):
    return Work("part", kind, precision, flops, moved, kernels=3)


@pytest.mark.parametrize(
    ("each", "arithmetic", "memory"),
    [
        (work("product", "bf16", 100, 8), 2.0, 0.0),
        (work("product", "fp32", 100, 8), 20.0, 0.0),
        (work("product", "fp16", 100, 8), 20.0, 0.0),  # which this device has no unit for
        (work("convolution", "bf16", 100, 8), 4.0, 0.0),
        (work("convolution", "bf16", 100, 80), 0.0, 10.0),
        (work("other", "bf16", 0, 16), 0.0, 2.0),
    ],
)
def test_an_operator_is_as_slow_as_what_binds_it(each, arithmetic, memory):
    time = part_time("part", [each], DEVICE)
    assert (time.arithmetic, time.memory, time.host) == (arithmetic, memory, 1.5)


def test_measured_seconds_count_instead():
    time = part_time("part", [Work("part", "product", "bf16", 100, 8, 3, seconds=7.0)], DEVICE)
    assert (time.arithmetic, time.memory, time.host) == (7.0, 0.0, 1.5)
    time = part_time("part", [Work("part", "other", "bf16", 0, 8, 3, seconds=7.0)], DEVICE)
    assert (time.arithmetic, time.memory) == (0.0, 7.0)


def test_operators_add_up_and_are_done_as_often_as_they_are():
    both = [work("product", "bf16", 100, 8), work("other", "bf16", 0, 16)]
    time = part_time("part", both, DEVICE, times=3)
    assert (time.flops, time.bytes, time.kernels) == (300, 72, 18)
    assert (time.arithmetic, time.memory, time.device, time.host) == (6, 6, 12, 9)


def of_gpus(ranks=8, device=None, model=(), **sections):
    device = device or named_device("h100")
    settled = config(
        {"name": "r18", **dict(model)}, {"tile": 1280}, {"batch_size": 64, "threads": 4}, precision="bf16", **sections
    )
    setting = Setting(True, device.memory, ranks, 100_000)
    return forecast(settled, setting, trace_step(settled, setting), device, links_of(device))


def test_the_slowest_flow_sets_the_pace():
    device = named_device("h100")
    plain = of_gpus()
    assert plain.images == 8 * 64 and plain.images_per_second == plain.images / plain.step
    slow_host = of_gpus(device=replace(device, launch=1.0))
    assert slow_host.binds == "host" and slow_host.step == slow_host.host
    slow_decoding = of_gpus(device=replace(device, decode=10.0))
    assert slow_decoding.binds == "decoding" and slow_decoding.step == 64 / 40
    fast_host = of_gpus(device=replace(device, launch=0.0))
    assert fast_host.binds in ("arithmetic", "memory")
    assert fast_host.step == pytest.approx(sum(part.device for part in fast_host.parts) + fast_host.exposed)


def test_one_rank_waits_for_no_link():
    alone = of_gpus(ranks=1)
    assert alone.exposed == alone.hidden == 0


def test_batch_norms_over_all_ranks_are_waited_for():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(create_model("r18"))
    channels = [norm.num_features for norm in converted.modules() if isinstance(norm, nn.SyncBatchNorm)]
    numbers, layers, links = sum(channels), len(channels), links_of(named_device("h100"))
    statistics = Exchange("", "all_gather", 4 * 8 * (2 * numbers + layers), layers).seconds(8, links)
    gradients = Exchange("", "all_reduce", 4 * 2 * numbers, layers).seconds(8, links)
    more = of_gpus(model={"sync_batchnorm": True}).exposed - of_gpus().exposed
    assert more == pytest.approx(statistics + gradients) and layers == 31


def test_accumulated_batches_share_one_update():
    once, twice = of_gpus(), of_gpus(optim={"name": "sgd", "lr": 0.1, "accumulate": 2})
    assert twice.images == 2 * once.images
    first = {part.name: part for part in once.parts}
    second = {part.name: part for part in twice.parts}
    assert second["backbone forward"].flops == 2 * first["backbone forward"].flops
    assert second["backbone update"].bytes == pytest.approx(first["backbone update"].bytes)


def test_on_a_cpu_all_times_add_up():
    settled = config({"name": "r18", "input_size": 36}, {"tile": 1280}, {"threads": 2})
    setting = Setting(False, 2**34, 1, 1000)
    cpu = replace(DEVICE, name="cpu", flops={"fp32": 1e11}, bandwidth=1e10, launch=1e-6, decode=1e4, link="loopback")
    found = forecast(settled, setting, trace_step(settled, setting), cpu, links_of(cpu))
    assert found.step == pytest.approx(sum(part.device for part in found.parts) + found.host + 8 / 2e4)
