"""A run's ranks: how they find each other, agree, and part; and what all of them do together."""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evaluate.features.ranks import World, take_device
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError
from train.stop import Stopped

Value = TypeVar("Value")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LATE = 30.0  # seconds


@contextmanager
def joined(device: str, start_timeout: float) -> Iterator[World]:
    """This process's place in the group that torchrun describes, or in one of its own.

    The group is left at an end that all ranks come to together. Where one of them fails it is not: leaving waits for
    what the others still expect, and until then nobody would be told.

    Args:
        device: see `take_device`.
        start_timeout: seconds that collectives may take until `limit_waiting` is called.
    """
    world = _join(take_device(device), timedelta(seconds=start_timeout))
    if world.device.type != "cuda":
        torch.set_num_threads(own_cores())
    try:
        yield world
    except Stopped:  # on all ranks at the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _join(device: torch.device, timeout: timedelta) -> World:
    if device.type != "cuda":
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return World(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Ranks end with their launcher: a kill of torchrun becomes a SIGTERM for them.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    dist.init_process_group(backend, store=_fresh(store, rank, size), rank=rank, world_size=size, timeout=timeout)
    return World(device, rank, size)


def _fresh(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The part of torchrun's store that is this attempt's.

    The store outlives a restart, so that ranks would meet the addresses of the attempt before. A restart after a
    failure has a number of its own. One for nodes that come or go has not: there each rank counts its starts at this
    size.
    """
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {size}", store)
    return dist.PrefixStore(f"start {store.add(f'starts of rank {rank}', 1)}", store)


def limit_waiting(timeout: float) -> None:
    """From here on collectives of the default group may take ``timeout`` seconds."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), dist.group.WORLD)


def agreed(action: Callable[[], Value], group: dist.ProcessGroup | None = None) -> list[Value]:
    """What ``action`` gives on each rank; where it fails on one, every rank ends; all ranks call.

    The rank that fails raises its error. The others leave without a word, so that the error is told once.
    """
    error: BaseException | None = None
    value: Any = None
    try:
        value = action()
    except Exception as raised:
        error = raised
    if dist.get_world_size() == 1:
        if error:
            raise error
        return [value]
    outcomes: list[Any] = [None] * dist.get_world_size()
    code = None if error is None else 2 if isinstance(error, (UserError, OSError)) else 1
    dist.all_gather_object(outcomes, (value, code), group)
    if error:
        raise error
    for _, code in outcomes:
        if code is not None:
            raise SystemExit(code)
    return [value for value, _ in outcomes]


def own_cores() -> int:
    """Cores for this rank: those that it may run on, over the ranks that may run on the same; all ranks call.

    They are all of the machine's, or, where a launcher binds ranks to what lies beside their GPU, only some.
    """
    own = socket.gethostname(), sorted(os.sched_getaffinity(0))
    return max(1, len(own[1]) // agreed(lambda: own).count(own))


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether a condition on files of a shared disk is met, within the time that a network file system may be late."""
    deadline = time.monotonic() + _LATE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def first_of_node(world: World) -> Iterator[None]:
    """One process of each node goes through the block before its others do: they find what it has left on the disk."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        world.barrier()
    yield
    if first:
        world.barrier()


@torch.no_grad()
def average_batch_statistics(model: nn.Module) -> None:
    """Replace the running means and variances by their averages over the ranks.

    Each rank has seen its own part of every batch; a model is verified and saved with what all have seen. What is equal
    on all ranks stays so to the last bit: float64 has room for the sum.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for buffer, average in zip(buffers, _averaged([b.double() for b in buffers])):
        buffer.copy_(average)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over the ranks, as DistributedDataParallel does it for the network's; all ranks call."""
    if dist.get_world_size() == 1:
        return
    # A parameter that a rank's step did not need counts there as 0: all ranks must sum the same numbers.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, average in zip(parameters, _averaged(gradients)):
        parameter.grad = average


def _averaged(tensors: list[Tensor]) -> list[Tensor]:
    """The averages of tensors over the ranks, in one exchange."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    return [part.view_as(tensor) for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]))]
