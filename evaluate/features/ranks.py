"""This process's place: alone, or one of several under torchrun, and on which device."""

import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.common import drivers
from pipelines.common.errors import UserError

# How long ranks wait for one that embeds a larger or slower share. One that dies ends the others by its launcher.
_PATIENCE = timedelta(hours=1)
_CPU = "device: cpu in a config, CUDA_VISIBLE_DEVICES= before a command"
_DEVICE = Path("/dev/nvidia0")


@dataclass(frozen=True)
class World:
    """One process of a run or an evaluation.

    Attributes:
        device: what it computes on.
        rank, size: its place among all processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process prints and writes what all ranks have found together."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


def find_device(wanted: str = "auto") -> torch.device:
    """The device of this process.

    Args:
        wanted: ``cpu``; ``cuda``: the device of the local rank, or the only one where each process is shown its own;
            ``auto``: CUDA where there is a GPU, else the CPU. An empty ``CUDA_VISIBLE_DEVICES`` means the CPU to it.

    Raises:
        UserError: there are too few CUDA devices, or with ``auto`` a GPU that PyTorch cannot use.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1")
    if wanted == "cpu" or (wanted == "auto" and hidden):
        return torch.device("cpu")
    devices = count_devices()
    if not devices:
        if wanted == "auto" and not (sign := _sign_of_a_gpu()):
            return torch.device("cpu")
        found = "no GPU is visible" if wanted == "cuda" else f"this machine has a GPU ({sign})"
        raise UserError(f"{found}, and PyTorch finds no CUDA device: {_driver()}; or choose the CPU: {_CPU}")
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices >= max(size, local + 1):
        return torch.device("cuda", local)
    if devices == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun shows all of its processes the same devices
        return torch.device("cuda", 0)
    raise UserError(
        f"there are {size} processes on this machine, which has {devices} CUDA devices: start as many processes "
        f"as there are devices, or choose the CPU: {_CPU}"
    )


def count_devices() -> int:
    """The CUDA devices that PyTorch can use. Of a driver that is too old for it, nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def take_device(wanted: str = "auto") -> torch.device:
    """The device that `find_device` finds, made the one that this process computes on.

    On a GPU cuDNN times its ways to compute a convolution once for each shape and takes the fastest: images come in one
    shape. And float32 means float32, in convolutions as in matrix products, where PyTorch by itself lets cuDNN round
    their operands to TF32, that is, to ten bits of mantissa: who wants speed asks for bf16 and says so.
    """
    device = find_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
    return device


def _sign_of_a_gpu() -> str | None:
    """What on this machine shows that it has a GPU, whether PyTorch can use it or not."""
    for path in (_DEVICE, drivers.LOADED):
        if path.exists():
            return str(path)
    if torch.cuda.device_count():
        return "its driver tells of one"
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return "nvidia-smi lists one" if re.search(r"^GPU \d", listed, re.MULTILINE) else None


def _driver() -> str:
    """What keeps PyTorch from a GPU, as far as can be told, and the remedy."""
    if not torch.version.cuda:
        return f"PyTorch {torch.__version__} is built without CUDA, install a build with it"
    return (
        f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, the driver is "
        f"{drivers.installed_driver() or 'unknown'}; install a newer driver, or a torch built for an older CUDA "
        "(docs/install.md, Drivers)"
    )


def is_main() -> bool:
    """Whether this process is the main one, as `World.main` tells where there is one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def ranks() -> Iterator[World]:
    """This process's place; under torchrun with a process group, which ends with the context if it began with it.

    After an error it does not end: other ranks may sit in a collective, and this one would wait for them with its
    error untold. `pipelines.common.command.run` ends the process then.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = take_device()
    own_group = size > 1 and not dist.is_initialized()
    if own_group:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield World(device, rank, size)
    if own_group:
        dist.destroy_process_group()
