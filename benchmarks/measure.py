"""What the benchmarks measure with: the device's work done, time of a call and of processors, peak memory."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch


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
    """Seconds that processors have worked for this process and those that ``multiprocessing`` began and that live."""
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
