"""What a run was made with: the revision of the code, the libraries, the device and the data."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evaluate.features.ranks import World
from pipelines.common import drivers

_ROOT = Path(__file__).resolve().parents[1]


def environment(world: World, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values, none nested; ``meta``: what a checkpoint notes of its run, whose data and batch they are.

    Without a git checkout ``revision`` is None, without a GPU ``driver`` is.
    """
    device = world.device
    return {
        "facemill": _version("facemill"),
        "revision": revision(_ROOT),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": next((f"{name} {_version(name)}" for name in drivers.dali_builds()), None),
        "driver": drivers.installed_driver(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": world.size,
        **{name: meta[name] for name in ("global_batch", "images", "num_classes", "fingerprint")},
    }


def revision(root: Path) -> str | None:
    """The commit of the checkout at ``root``, with ``-dirty`` where tracked files are changed; None for no checkout."""
    if not (root / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
