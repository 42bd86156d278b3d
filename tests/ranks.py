"""A pool of processes that act as gloo ranks, started once for the whole suite."""

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist
import torch.multiprocessing  # noqa: F401  teaches connections to hand tensors over

from tests.processes import CONTEXT


def _serve(connection: Connection) -> None:
    while (job := connection.recv()) is not None:
        function, args, rank, world_size, store = job
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=600)
            )
            dist.barrier()  # a rank that left while another was still connecting would fail that one
            result = (True, function(*args))
        except BaseException:
            result = (False, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        connection.send(result)


class RankPool:
    """``pool(world_size, function, *args)`` calls a module-level function on each rank; returns the results by rank."""

    def __init__(self) -> None:
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        while len(self._workers) < world_size:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, ours))
        with tempfile.TemporaryDirectory() as folder:
            for rank, (_, connection) in enumerate(self._workers[:world_size]):
                connection.send((function, args, rank, world_size, f"{folder}/store"))
            answers = [connection.recv() for _, connection in self._workers[:world_size]]
        failures = [f"rank {rank}:\n{text}" for rank, (good, text) in enumerate(answers) if not good]
        if failures:
            raise AssertionError("\n".join(failures))
        return [result for _, result in answers]

    def close(self) -> None:
        for process, connection in self._workers:
            connection.send(None)
            process.join(timeout=10)
            process.terminate()
