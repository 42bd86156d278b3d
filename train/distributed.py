"""A run's ranks: how they find each other, and what all of them do together."""

import os

import torch
import torch.distributed as dist
from torch import nn

from evaluate.features.ranks import World
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError


def start(device: str = "auto") -> World:
    """Join the process group that torchrun describes, or make one of this process alone.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is a device for every local rank.
    """
    local, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and devices < local_size:
        raise UserError(f"device: cuda with {local_size} processes on this machine, which has {devices} CUDA devices")
    if device == "cuda" or (device == "auto" and devices >= local_size):
        torch.cuda.set_device(local)
        place, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
    else:
        place, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
        keep_freed_memory()
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return World(place, dist.get_rank(), dist.get_world_size())


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


@torch.no_grad()
def average_batch_statistics(model: nn.Module) -> None:
    """Replace the running means and variances by their averages over the ranks.

    Each rank has seen its own part of every batch; a model is verified and saved with what all have seen.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if not buffers:
        return
    flat = torch.cat([b.flatten() for b in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(values.view_as(buffer))
