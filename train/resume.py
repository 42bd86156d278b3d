"""Whether a checkpoint is one of this run, and how its batches are shared among the processes that go on with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.config import Config
from train.keys import flattened


def batches_a_step(config: Config, world: World, meta: dict[str, Any]) -> int:
    """Batches that each process takes in a step.

    A run that goes on from a checkpoint with this ``meta`` ({} for a new run) takes as many as keep the global batch on
    the processes that there are now. Only an ``optim.accumulate`` that was changed since counts as it stands: it is
    meant, and `check_resumable` refuses it where it makes another global batch.

    Raises:
        UserError: no number keeps the global batch.
    """
    stated, noted = config.optim.accumulate, meta.get("config")  # which older versions did not note
    if not meta or (noted and noted["optim"]["accumulate"] != stated):
        return stated
    batches, rest = divmod(meta["global_batch"], config.data.batch_size * world.size)
    if rest or not batches:
        raise UserError(
            f"{config.output} was trained with a global batch of {meta['global_batch']}; "
            f"{world.size} x data.batch_size={config.data.batch_size} does not divide it: change data.batch_size"
        )
    return batches


def check_resumable(config: Config, path: Path, meta: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises ``UserError`` where the checkpoint ``path`` is of another run than ``config``, whose meta is ``ours``."""
    if config.checkpoint.resume == "never":
        raise UserError(f"{config.output} holds a run; set checkpoint.resume=auto to go on, or another output")
    for name, value in ours.items():
        if name == "config" or meta.get(name, value) == value:
            continue
        if name == "fingerprint":
            raise UserError(
                f"cannot resume {path}: {config.data.paths_text} has other labels, names, sizes, weights or another "
                "order of images than it had then; restore the data or choose another output"
            )
        if name == "trained":
            raise UserError(
                f"cannot resume {path}: of the backbone it trains {meta[name]}, here it is {value}; restore "
                "model.freeze and model.lora, or choose another output"
            )
        raise UserError(
            f"cannot resume {path}: its {name} is {meta[name]}, here it is {value}; "
            "restore it (the global batch is data.batch_size x processes x optim.accumulate) "
            "or choose another output"
        )


def config_changes(meta: dict[str, Any], config: dict[str, Any]) -> str | None:
    """A line to tell which values of ``config`` are others than when the checkpoint of ``meta`` was written.

    They count from there on: that a run is given more epochs, a lower rate or another margin is allowed, but is to be
    seen. That its folder has another name is not told. Checkpoints of older versions note no config.
    """
    if "config" not in meta:
        return None
    before, now = flattened(meta["config"]), flattened(config)
    keys = [key for key in {**before, **now} if key != "output" and before.get(key) != now.get(key)]
    changed = [f"{key} from {before.get(key, 'its default')} to {now.get(key, 'its default')}" for key in keys]
    return f"the config has changed at step {meta['step']}: {'; '.join(changed)}" if changed else None


def same_sets(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two configs verify sets of the same names, wherever these lie."""
    names, others = (sorted(Path(path).stem for path in config["verify"]["bins"]) for config in (before, now))
    return names == others


@contextmanager
def blaming(changes: str | None) -> Iterator[None]:
    """What a checkpoint lacks for this run is told with the ``changes`` of its config, which are the likely reason."""
    try:
        yield
    except UserError as error:
        if changes is None:
            raise
        raise UserError(
            f"{str(error).rstrip('.')}; {changes}: restore what it cannot go on with, or choose another output"
        ) from error
