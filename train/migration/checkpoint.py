"""arcface_torch's checkpoints (``checkpoint_gpu_*.pt``, a file a rank) as a checkpoint of a run here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate.features.ranks import World
from losses.head.arcface_torch import STATES, load_arcface_torch, mapped, rank_files
from pipelines.common.errors import UserError, one_line
from train.config import Config
from train.migration.translation import Became, Row
from train.state import OptimizerState
from train.step_folders import complete
from train.trainer import Trainer

# Their names of an optimiser's state → those of the centres' here; AdamW's count of steps is a number of each row here.
_CENTRE_STATE = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "steps"}


@dataclass
class Saved:
    """What their ranks saved at the end of an epoch.

    Attributes:
        files: each rank's file, by rank.
        epoch: epochs behind it.
        global_step: batches behind it, of each rank.
        scheduler: the state of their learning rate.
    """

    files: list[Path]
    epoch: int
    global_step: int
    scheduler: Mapping[str, Any]

    @property
    def power(self) -> float | None:
        """The exponent of the learning rate's polynomial, where the scheduler has one."""
        power = self.scheduler.get("power")
        return float(power) if isinstance(power, int | float) else None

    @property
    def total(self) -> int | None:
        """The batches of the whole run, as the scheduler counts them."""
        return next((self.scheduler[name] for name in ("total_iters", "max_steps") if name in self.scheduler), None)


def find_saved(folder: Path) -> Saved | None:
    """The newest state of a run in its folder; None where there is none, or where it is no folder.

    Raises:
        UserError: a rank's file is missing, or a file is not what its name says.
        OSError: there is no folder.
    """
    files = [] if folder.is_file() else rank_files(folder, STATES)
    if not files:
        return None
    contents = [_read(path) for path in files]
    steps = {content["global_step"] for content in contents}
    if len(steps) > 1:
        raise UserError(f"the files in {folder} are of different steps: {', '.join(map(str, sorted(steps)))}")
    first = contents[0]
    return Saved(files, first["epoch"], first["global_step"], first["state_lr_scheduler"])


def find_weights(folder: Path) -> Row:
    """What a run without states starts from: the backbone of ``model.pt``, and centres where there are any.

    Instead of the folder it may be a file of weights, as AdaFace's ``.ckpt``.

    Raises:
        UserError: there is neither a state nor a model in the folder.
    """
    files = [folder] if folder.is_file() else [folder / name for name in ("model.pt", "backbone.pth")]
    models = [path for path in files if path.is_file()]
    if not models:
        raise UserError(f"{folder} has neither checkpoint_gpu_0.pt nor model.pt: give their folder work_dirs/x")
    settings = {"model.init_from": str(models[0])}
    note = "a new run from these weights: there is no state of an optimiser"
    if any(folder.glob("softmax_fc_gpu_*.pt")):
        settings["head.init_from"] = str(folder)
    else:
        note += ", and there are no centres, which start anew"
    return Row("--checkpoint", str(folder), Became(settings, note))


def write_checkpoint(config: Config, saved: Saved) -> Path:
    """Write what they saved as the newest checkpoint of the run ``config``, in a process group of this process alone.

    Weights, running statistics and momentum (or AdamW's moments) of the backbone are those of their rank 0, as in their
    ``model.pt``; centres and their momentum are put together from all ranks. The run goes on from it on any number.

    Raises:
        UserError: the files do not fit the config, or its output holds a run already.
        OSError: a file cannot be read, the data for one.
    """
    if complete(Path(config.output) / "checkpoints"):
        raise UserError(f"{config.output} holds a run already: give another output=FOLDER")
    here = config.with_values(  # without what only GPUs do
        model={"compile": False, "sync_batchnorm": False},
        head={"kernels": "torch"},
        data={"decode": "cpu"},
        optim={"compress": "none"},
    )
    trainer = Trainer(here, World(torch.device("cpu")))
    try:
        _fill(trainer, saved, batches=config.optim.accumulate)
        meta = trainer.meta | {"global_batch": trainer.global_batch * len(saved.files)}
        meta["config"] = config.model_dump(mode="json")  # what goes on from it is compared with
        written = trainer.checkpoints.save(trainer.step, trainer.parts, meta)
        trainer.checkpoints.finish()
        return written
    finally:
        trainer.loader.close()
        trainer.folder.release()


def _fill(trainer: Trainer, saved: Saved, batches: int) -> None:
    first = _read(saved.files[0])
    averages = [trainer.learner.average.network] if trainer.learner.average else []  # theirs has none: it begins here
    try:
        for network in (trainer.learner.backbone, *averages):
            network.load_state_dict(first["state_dict_backbone"])
    except RuntimeError as error:
        raise UserError(f"{saved.files[0]} does not fit {trainer.config.model.name}: {one_line(error)}") from None
    load_arcface_torch(trainer.learner.head, saved.files[0].parent)
    trainer.step = trainer.learner.head.step = saved.global_step // batches
    optimizer = first["state_optimizer"]
    names = _trained_in_order(first["state_dict_backbone"], trainer)
    _fill_backbone(trainer, optimizer, names, batches)
    rows = 0
    for path in saved.files:
        content = _read(path)
        count = len(content["state_dict_softmax_fc"]["weight"])
        _fill_centres(
            trainer, content["state_optimizer"]["state"].get(len(names), {}), slice(rows, rows + count), batches
        )
        rows += count


def _trained_in_order(state: Mapping[str, Tensor], trainer: Trainer) -> list[str]:
    """The backbone's parameters in the order in which their optimiser numbers them: that of the state dict."""
    parameters = dict(trainer.learner.backbone.named_parameters())
    return [name for name in state if name in parameters]


def _fill_backbone(trainer: Trainer, theirs: Mapping[str, Any], names: Sequence[str], batches: int) -> None:
    numbers = theirs["param_groups"][0]["params"]
    if list(numbers) != list(range(len(names))):
        raise UserError(
            f"their optimiser has {len(numbers)} parameters of the backbone, {trainer.config.model.name} has "
            f"{len(names)}: the checkpoint is of another network"
        )
    part = OptimizerState(trainer.learner.backbone, trainer.learner.optimizer)
    state = part.state_dict()
    for number, name in enumerate(names):
        for key, tensor in state["state"].get(name, {}).items():
            tensor.copy_(_scaled(theirs["state"].get(number, {}), key, tensor, batches, name))
    part.load_state_dict(state)


def _fill_centres(trainer: Trainer, theirs: Mapping[str, Any], rows: slice, batches: int) -> None:
    moments = [value for value in theirs.values() if isinstance(value, Tensor) and value.ndim]
    if trainer.learner.head.sample_rate < 1 and any(len(moment) != rows.stop - rows.start for moment in moments):
        theirs = {}  # their first Partial FC has that of the classes drawn last alone, and resumes without it
    for key, ours in _CENTRE_STATE.items():
        if ours in trainer.learner.centre_optimizer.state:
            state = trainer.learner.centre_optimizer.state[ours][rows]
            state.copy_(_scaled(theirs, key, state, batches, "the centres"))


def _scaled(theirs: Mapping[str, Any], key: str, ours: Tensor, batches: int, name: str) -> Tensor:
    """A tensor of an optimiser's state, 0 where a parameter never had a gradient.

    Their step sums the gradients of ``batches``, ours averages them.
    """
    value = theirs.get(key)
    if value is None:
        return torch.zeros_like(ours)
    value = torch.as_tensor(value, dtype=ours.dtype)
    if value.ndim and value.shape != ours.shape:
        raise UserError(f"{key} of {name} is {tuple(value.shape)} in their checkpoint, here {tuple(ours.shape)}")
    return value / {"step": 1, "exp_avg_sq": batches**2}.get(key, batches)


_KINDS = {
    "epoch": int,
    "global_step": int,
    "state_dict_backbone": dict,
    "state_dict_softmax_fc": dict,
    "state_optimizer": dict,
    "state_lr_scheduler": dict,
}


def _read(path: Path) -> dict[str, Any]:
    """A file's content, see `mapped`. Raises ``UserError`` where it is none of theirs."""
    content = mapped(path)
    for name, kind in _KINDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise UserError(f"{path} is no checkpoint of arcface_torch: it has no {name}")
    return content
