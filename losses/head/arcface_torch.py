"""Class centres from arcface_torch's files."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losses.head.partial_fc import PartialFC
from pipelines.common.errors import UserError

STATES = r"checkpoint_gpu_(\d+)\.pt"  # the names, with the rank, of files that hold all that a run has learnt
# File name (with the rank) → where its dictionary keeps the rank's rows.
_ARCFACE_TORCH = {
    STATES: ("state_dict_softmax_fc", "weight"),
    r"softmax_fc_gpu_(\d+)\.pt": ("weight",),
}


def arcface_torch_classes(folder: str | Path) -> int:
    """The number of classes whose centres are in ``folder``; raises as `load_arcface_torch` does."""
    return sum(len(_read(path, keys)) for path, keys in _arcface_torch_files(Path(folder)))


def load_arcface_torch(head: PartialFC, folder: str | Path) -> None:
    """Set the centres of ``head`` to those which arcface_torch saved, one file for each of its ranks.

    ``checkpoint_gpu_{rank}.pt``, or ``softmax_fc_gpu_{rank}.pt`` of its older versions. Its number of ranks need not be
    ours: each rank reads the rows that it holds (the files are mapped, not read whole). All ranks call.

    Raises:
        FileNotFoundError: the folder has no such file, or a rank's is missing.
        ValueError: a file is not what its name says, or its centres are not of the head's shape.
    """
    files = _arcface_torch_files(Path(folder))
    first = 0
    for rank, (path, keys) in enumerate(files):
        weight = _read(path, keys)
        rows = head.num_classes // len(files) + (rank < head.num_classes % len(files))
        if weight.shape != (rows, head.weight.shape[1]):
            raise UserError(
                f"{path}: centres of shape {tuple(weight.shape)}, where rank {rank} of {len(files)} has "
                f"{(rows, head.weight.shape[1])} of {head.num_classes} classes: build the head with the run's classes"
            )
        begin, end = max(first, head.start), min(first + rows, head.stop)
        if begin < end:
            with torch.no_grad():
                head.weight[begin - head.start : end - head.start] = weight[begin - first : end - first]
        first += rows


def rank_files(folder: Path, pattern: str) -> list[Path]:
    """The files of all ranks, by rank, whose number is the first group of the name's ``pattern``; [] for none.

    Raises ``FileNotFoundError`` where one between others is missing.
    """
    ranks = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))}
    if missing := set(range(max(ranks, default=-1) + 1)) - ranks.keys():
        raise FileNotFoundError(f"{folder} lacks the file of arcface_torch's rank {min(missing)}")
    return [ranks[rank] for rank in sorted(ranks)]


def mapped(path: Path) -> Any:
    """What `torch.save` wrote, its tensors mapped and nothing run. Raises ``UserError`` for anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no checkpoint of arcface_torch: {str(error).splitlines()[0]}") from None


def _arcface_torch_files(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """The files by rank, and the keys that lead to their centres."""
    for pattern, keys in _ARCFACE_TORCH.items():
        if files := rank_files(folder, pattern):
            return [(path, keys) for path in files]
    raise FileNotFoundError(f"{folder} has neither checkpoint_gpu_0.pt nor softmax_fc_gpu_0.pt of arcface_torch")


def _read(path: Path, keys: tuple[str, ...]) -> Tensor:
    content = mapped(path)
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, Tensor) or content.ndim != 2:
        raise UserError(f"{path} is no checkpoint of arcface_torch: {keys[-1]} is no matrix of centres")
    return content
