"""This machine as a device of the planner, by short measurements: some seconds on a CPU, fewer on a GPU."""

import io
import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.loading.loader import read_once
from pipelines.sources.memory import MemorySource
from train.planning.devices import Device, known_device

_CPU = {"fp32": torch.float32, "bf16": torch.bfloat16}  # it has no units for fp16
_DTYPES = {"cpu": _CPU, "cuda": _CPU | {"fp16": torch.float16}}
_SECONDS = 0.4  # a measurement
_WIDTHS = ((64, 56), (256, 14))  # channels and side of the maps where an iresnet has most of its work


def this_device(device: torch.device | str | None = None) -> Device:
    """What this machine's device reaches, with all of torch's threads where it is the CPU.

    The shares are those of a large product and a large copy; on a CPU, where convolutions come from another library,
    theirs may be more than 1. A GPU keeps the link of its entry in ``DEVICES``, or is taken for a PCIe card. Cores are
    those that this process may run on, divided among the ranks of this machine.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    cores = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    best = "bf16" if device.type == "cuda" else "fp32"
    flops = {name: _product(device, dtype) for name, dtype in _DTYPES[device.type].items()}
    copied = _copy(device)
    return Device(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        memory=_memory(device),
        flops=flops,
        bandwidth=copied,
        link=_link(device),
        matmul_share=1.0,
        conv_share=_convolution(device, _DTYPES[device.type][best]) / flops[best],
        memory_share=min(1.0, _moving(device) / copied),
        launch=_launch(device),
        decode=_decode(),
        cores=cores,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a call, with the device's work done: what disturbs a measurement only makes it longer."""
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    work()
    while len(times) < 3 or time.perf_counter() < end:
        _finish(device)
        began = time.perf_counter()
        work()
        _finish(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _seconds(lambda: a @ a, device)


def _convolution(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of 3 x 3 convolutions of iresnets, forward and backward."""
    batch, flops, works = 128 if device.type == "cuda" else 16, 0, []
    for width, side in _WIDTHS:
        x, weight = _maps(batch, width, side, device, dtype), _maps(width, width, 3, device, dtype)
        flops += 3 * 2 * batch * side**2 * width**2 * 9
        works.append((x, weight))

    def work() -> None:
        for x, weight in works:
            y = F.conv2d(x, weight, padding=1)
            torch.autograd.grad(y, (x, weight), y.detach())

    return flops / _seconds(work, device)


def _maps(batch: int, width: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    maps = torch.randn(batch, width, side, side, device=device).to(dtype)
    return maps.to(memory_format=torch.channels_last).requires_grad_()


def _copy(device: torch.device) -> float:
    """Bytes/s read and written by a copy that fits no cache."""
    numbers = 2**28 if device.type == "cuda" else 2**24
    a, b = torch.ones(numbers, device=device), torch.empty(numbers, device=device)
    return 8 * numbers / _seconds(lambda: b.copy_(a), device)


def _moving(device: torch.device) -> float:
    """Bytes/s of a sum and a product of maps, which is what a network does between its products."""
    width, side = _WIDTHS[0]
    x = _maps(128 if device.type == "cuda" else 16, width, side, device, torch.float32).detach()
    y, z = x * 0.5, torch.empty_like(x)

    def work() -> None:
        torch.add(x, y, out=z)
        torch.mul(z, y, out=x)

    return 6 * x.nbytes / _seconds(work, device)


def _launch(device: torch.device) -> float:
    """Seconds of the host a kernel, forward and backward, on numbers that cost nothing."""
    x = torch.ones(1, device=device, requires_grad=True)
    length = 200

    def work() -> None:
        y = x
        for _ in range(length):
            y = y * 1.0
        torch.autograd.grad(y, x)

    # Not waiting for the device: it is the host that is measured.
    return _seconds(work, torch.device("cpu")) / (2 * length)


def _decode() -> float:
    """JPEGs a second that one core decodes, of faces' size and detail: smooth, with some noise."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(256):
        coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), np.uint8)).resize((112, 112), 3)
        pixels = np.asarray(coarse, np.float32) + generator.normal(0, 4, (112, 112, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
        encoded.append(file.getvalue())
    source, order = MemorySource(encoded), np.arange(4096) % len(encoded)
    batches = read_once(source, order, batch_size=128, dtype=torch.uint8, threads=1)
    for _ in range(4):
        next(batches)
    began, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.images)
    return count / (time.perf_counter() - began)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _link(device: torch.device) -> str:
    if device.type != "cuda":
        return "loopback"
    known = known_device(torch.cuda.get_device_name(device))
    return known.link if known else "pcie4"
