"""Stages of a piece of work, timed one by one in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.measure import peak_memory
from benchmarks.results import Row


class Clock:
    """Wall time, processor time and peak memory of stages, as rows of a table."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.rows: list[Row] = []

    def __call__(self, stage: str, work: Callable[[], Any], held: int = 0) -> Any:
        """Run ``work``; ``held`` bytes were there before and are not counted."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        self.rows.append(
            {
                "stage": stage,
                "way": self.way,
                "seconds": round(time.perf_counter() - wall, 3),
                "processor_seconds": round(time.process_time() - processor, 3),
                "peak_gb": round((peak_memory(torch.device("cpu")) - held) / 1e9, 2),
            }
        )
        return result


def alone(way: Callable[[Any], Any], argument: Any, threads: int) -> Any:
    """Call ``way`` with its argument in a fresh process with so many threads for torch and numpy."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool_of_one:
        return pool_of_one.apply(_limited, (way, argument, threads))


def _limited(way: Callable[[Any], Any], argument: Any, threads: int) -> Any:
    with threadpool_limits(threads):
        return way(argument)
