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
from torch import nn

from pipelines.common.errors import UserError

_NAME = re.compile(r"step_(\d{9})$")


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
        """What the checkpoint says of itself, ``fields`` at least. Raises ``ValueError`` where it does not."""
        file = path / "meta.json"
        try:
            meta = json.loads(file.read_text())
        except ValueError:  # no text, or no JSON
            meta = None
        missing = [name for name in fields if not isinstance(meta, dict) or name not in meta]
        if missing:
            raise UserError(
                f"{file} does not say the {missing[0]} of its run: it is damaged, or of another version; "
                f"remove {path} to take the checkpoint before it"
            )
        return meta

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> Path:
        """Write a checkpoint; all ranks call. ``state`` holds tensors, DTensors and state dicts of them."""
        final = self.folder / f"step_{step:09d}"
        partial = final.with_suffix(".partial")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        _quietly(dcp.save, state, partial)
        if dist.get_rank() == 0:
            (partial / "meta.json").write_text(json.dumps({"step": step, **meta}, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
        return final

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Read a checkpoint into the tensors of ``state``, in place, sharded as they are; all ranks call."""
        try:
            _quietly(dcp.load, state, path)
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot resume from {path}: {text[-1]}; remove it to resume from the one before"
            ) from error


def _quietly(function: Callable[..., Any], state: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(state, checkpoint_id=str(path))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict of CPU tensors, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(path)


logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
