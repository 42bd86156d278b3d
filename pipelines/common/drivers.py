"""Which NVIDIA driver the installed builds of PyTorch and DALI need, and which one this machine has."""

import re
from importlib.metadata import distributions
from pathlib import Path

import torch

# By the CUDA that a build is made for, the oldest driver that runs it: NVIDIA's table "CUDA Toolkit and Minimum
# Required Driver Version for CUDA Minor Version Compatibility".
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}

SOUND_DALI = "2.1"  # the version whose decoder survives whatever it is given: see docs/log.md

LOADED = Path("/proc/driver/nvidia/version")  # which is there where a driver is
_DALI = re.compile(r"nvidia-dali(?:-\w+)?-cuda(\d+)0")


def installed_driver() -> str | None:
    """The version of the loaded driver, say ``580.82.07``; None where there is none, or it does not tell."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", LOADED.read_text(errors="replace"))
    except OSError:
        return None
    return found[0] if found else None


def cuda_of_torch() -> int | None:
    """The major version of the CUDA that the installed PyTorch is built for; None for a build without."""
    return int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None


def dali_builds() -> dict[str, int]:
    """The installed builds of DALI: package, say ``nvidia-dali-cuda120``, to the major version of its CUDA.

    Two of them are a broken installation: they are files of the same names, and the later one wins.
    """
    names = sorted({str(each.metadata["Name"]).lower().replace("_", "-") for each in distributions()})
    return {name: int(found[1]) for name in names if (found := _DALI.fullmatch(name))}


def cuda_of_dali() -> int | None:
    """The major version of the CUDA that the installed DALI is built for; None where that is not one build."""
    builds = dali_builds()
    return next(iter(builds.values())) if len(builds) == 1 else None


def why_dali_has_no_gpu() -> str:
    """What keeps DALI from a GPU that PyTorch can use, as far as can be told, and the remedy."""
    builds = dali_builds()
    if len(builds) > 1:
        several = " and ".join(builds)
        return f"{several} lie over each other; uninstall them, then install one of them (docs/install.md, Drivers)"
    if builds:
        name, cuda = next(iter(builds.items()))
        least = LEAST_DRIVER.get(cuda, "a later version")
        older = ", or nvidia-dali-cuda120 in its place (docs/install.md, Drivers)" if cuda > 12 else ""
        found = installed_driver() or "unknown"
        return f"{name} needs a driver from {least} on, this one is {found}; install a newer one{older}"
    return "is the driver recent enough for its build?"
