"""Whether a checkpoint is one of this run, and how its batches are shared among the processes that go on with it."""

import json
from pathlib import Path
from typing import Any

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.config import Config
from train.sections.optim import Optim


def batches_a_step(config: Config, world: World, meta: dict[str, Any]) -> int:
    """Batches that each process takes in a step.

    It is what the config says, unless the checkpoint of ``meta`` ({} for none) was written by another number of
    processes: then it is what keeps the global batch.

    Raises:
        UserError: no number does.
    """
    if meta.get("ranks", world.size) == world.size:
        return config.optim.accumulate
    batches, rest = divmod(meta["global_batch"], config.data.batch_size * world.size)
    if rest or not batches:
        raise UserError(
            f"{config.output} was trained on {meta['ranks']} processes with a global batch of {meta['global_batch']}; "
            f"{world.size} x data.batch_size={config.data.batch_size} does not divide it: change data.batch_size"
        )
    return batches


def check_resumable(config: Config, path: Path, meta: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises ``UserError`` where the checkpoint ``path`` is of another run than ``config``, whose meta is ``ours``."""
    if config.checkpoint.resume == "never":
        raise UserError(f"{config.output} holds a run; set checkpoint.resume=auto to go on, or another output")
    for name, value in ours.items():
        if name in ("ranks", "groups") or meta.get(name, value) == value:
            continue
        if name == "fingerprint":
            raise UserError(
                f"cannot resume {path}: {config.data.told} has other labels, sizes, weights or another order of "
                "images than it had then; restore the data or choose another output"
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


def groups_as_text(optim: Optim) -> str:
    """``optim.groups`` and the shares of the rate beside them, unless these are 1, as a checkpoint notes them."""
    groups = json.dumps([group.model_dump(exclude_defaults=True) for group in optim.groups])
    shares = {name: getattr(optim, name) for name in ("backbone_lr", "layer_decay")}
    return groups + "".join(f", {name} {share:g}" for name, share in shares.items() if share != 1)


def regrouped(meta: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """A line to tell that the checkpoint of ``meta`` had other groups of parameters.

    That is allowed: the optimiser's state is by names of parameters, and their rates and decays are the config's.
    """
    before, now = meta.get("groups", "[]"), ours["groups"]
    return None if before == now else f"optim.groups: {before} up to step {meta['step']}, from here on {now}"
