"""The class centres of an earlier run as the start of a new one.

What reads checkpoints takes a second to import, so only a run that starts from one imports it.
"""

from pathlib import Path

from losses import PartialFC
from losses.head.arcface_torch import arcface_torch_classes, load_arcface_torch
from pipelines.common.errors import UserError
from train.distributed import agreed
from train.step_folders import complete


def stored_classes(folder: str | Path) -> int:
    """The number of classes in a run's output folder, Facemill's or arcface_torch's.

    Raises:
        OSError: there is no folder, or no centres in it.
        ValueError: a file is not what its name says.
    """
    checkpoint = _newest(folder)
    if not checkpoint:
        return arcface_torch_classes(folder)
    from train.checkpoint import Checkpoints

    return Checkpoints.meta(checkpoint, "num_classes")["num_classes"]


def load_centres(head: PartialFC, folder: str | Path) -> None:
    """Set the centres of ``head``, which has as many classes, to those in ``folder``; all ranks call.

    Raises as `stored_classes` does, and ``ValueError`` where the embeddings are of another size or a centre is NaN.
    """
    checkpoint, *_ = agreed(lambda: _newest(folder))  # a run that still trains may show the next rank a newer one
    if checkpoint:
        _load_sharded(head, checkpoint)
    else:
        load_arcface_torch(head, folder)
    if not head.weight.isfinite().all():
        raise UserError(f"{folder} has class centres that are not finite")


def _load_sharded(head: PartialFC, checkpoint: Path) -> None:
    from models.sharded import load_sharded

    try:
        load_sharded(checkpoint, {"head": {"weight": head.shard(head.weight.detach())}})
    except UserError as error:
        raise UserError(f"no centres of {head.weight.shape[1]} numbers in {checkpoint}: {error}") from error


def _newest(folder: str | Path) -> Path | None:
    found = complete(Path(folder) / "checkpoints")
    return found[-1] if found else None
