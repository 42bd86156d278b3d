"""Checkpoints of a run: sharded folders that load on any number of ranks, complete or absent, the newest few kept."""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.stateful import Stateful

from pipelines.common.errors import UserError
from pipelines.common.files import replacing

_NAME = re.compile(r"step_(\d{9})$")
# What this version writes. A higher number is for what an older version would misread; checkpoints without one are 1.
FORMAT = 1

# A part of a run: what has ``state_dict`` and ``load_state_dict``, or tensors that are read into in place.
Part = Stateful | Tensor | dict[str, Tensor]


class OptimizerState:
    """An optimiser as a part of a checkpoint, its state under the names of the module's parameters."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer

    def state_dict(self) -> dict[str, Any]:
        """The state, made at zero where there was no step yet."""
        return get_optimizer_state_dict(self._module, self._optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        set_optimizer_state_dict(self._module, self._optimizer, state)


class Checkpoints:
    """The folder ``checkpoints`` of a run.

    A checkpoint is written beside its final name and renamed when every rank has finished, so what bears a final name
    is whole. ``meta.json`` in it says in words what it belongs to.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path for path in self.folder.iterdir() if _NAME.search(path.name) and (path / "meta.json").exists()
        )

    @staticmethod
    def meta(path: Path, *fields: str) -> dict[str, Any]:
        """What the checkpoint says of itself, ``fields`` at least.

        Raises ``ValueError`` where it does not, or is of a newer format than this version reads.
        """
        file = path / "meta.json"
        try:
            meta = json.loads(file.read_text())
        except ValueError:  # no text, or no JSON
            meta = None
        if isinstance(meta, dict) and meta.get("format", 1) not in range(1, FORMAT + 1):
            raise UserError(
                f"{path} is of format {meta['format']}, and this version of Facemill reads {FORMAT} at most; "
                "use the version that wrote it, or a newer one"
            )
        missing = [name for name in fields if not isinstance(meta, dict) or name not in meta]
        if missing:
            raise UserError(
                f"{file} does not say the {missing[0]} of its run: it is damaged, or of another version; "
                f"remove {path} to take the checkpoint before it"
            )
        return meta

    def save(self, step: int, parts: dict[str, Part], meta: dict[str, Any]) -> Path:
        """Write a checkpoint of the parts, with what ``meta`` says in its ``meta.json``; all ranks call."""
        final = self.folder / f"step_{step:09d}"
        partial = final.with_suffix(".partial")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        _quietly(dcp.save, parts, partial)
        if dist.get_rank() == 0:
            meta = {"format": FORMAT, "step": step, "parts": list(parts), **meta}
            (partial / "meta.json").write_text(json.dumps(meta, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
        return final

    def load(self, path: Path, parts: dict[str, Part]) -> None:
        """Read a checkpoint into the parts, sharded as they are; all ranks call."""
        stored = self.meta(path, "step").get("parts", list(parts))
        if different := sorted(set(stored) ^ set(parts)):
            raise UserError(
                f"cannot resume from {path}: it has {', '.join(stored)}, this run {', '.join(parts)}: "
                f"restore the config of which {different[0]} comes, or choose another output"
            )
        try:
            _quietly(dcp.load, parts, path)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot resume from {path}: {text[-1]}; remove it to resume from the one before"
            ) from error


def latest_step(folder: Path) -> int:
    """The step from which a run with this folder of checkpoints goes on: that of its newest one, or 0."""
    found = Checkpoints(folder, keep=1).all()
    name = _NAME.search(found[-1].name) if found else None
    return int(name[1]) if name else 0


def _quietly(function: Callable[..., Any], parts: dict[str, Part], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(parts, checkpoint_id=str(path))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict of CPU tensors, whole or not at all."""
    with replacing(path) as temporary:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)


logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
