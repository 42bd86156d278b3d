"""What the benchmarks measure with: the device's work done, time of calls and of processors, peak memory."""

import gc
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

Way = TypeVar("Way", bound=Hashable)


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device's work finished."""
    finish(device)
    began = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - began


def in_turns(
    ways: Mapping[Way, Callable[[], object]], rounds: int, device: torch.device, *, warm_up: int = 1
) -> tuple[dict[Way, list[float]], dict[Way, list[float]]]:
    """Seconds of each way in each round, and of them those in which processors have worked for this process.

    The ways take turns, so that a noisy machine is noisy for all of them. Before the rounds go ``warm_up`` others,
    which are not counted.
    """
    walls: dict[Way, list[float]] = {way: [] for way in ways}
    works: dict[Way, list[float]] = {way: [] for way in ways}
    for turn in range(warm_up + rounds):
        for way, call in ways.items():
            busy = time.process_time()
            wall = wall_time(call, device)
            if turn >= warm_up:
                walls[way].append(wall)
                works[way].append(time.process_time() - busy)
    return walls, works


def mean_time(work: Callable[[], object], device: torch.device, calls: int = 20) -> float:
    """Seconds of a call, the mean of several one behind the other; on a GPU by events, the host's waiting left out."""
    finish(device)
    if device.type != "cuda":
        return wall_time(lambda: [work() for _ in range(calls)], device) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / calls


def processor_time() -> float:
    """Seconds for which processors have worked for this process and its living children of ``multiprocessing``."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(device: torch.device) -> int:
    """Bytes so far: the allocator's peak on a GPU, the resident set's of this process on a CPU.

    Writing "5" to ``/proc/self/clear_refs`` starts the latter afresh.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget(device: torch.device) -> None:
    """Give back what is no longer used, compiled code too, and count a GPU's peak memory from here."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        finish(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
