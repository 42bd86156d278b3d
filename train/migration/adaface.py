"""The options of AdaFace's command line."""

from collections.abc import Mapping
from typing import Any

from pipelines.common.errors import unknown
from train.migration.translation import Became, Row, Rule, Without, renamed, taken_up

_NETWORKS = ("ir_18", "ir_34", "ir_50", "ir_101", "ir_se_50")
_AUGMENTED = tuple(f"{kind}_augmentation_prob" for kind in ("low_res", "crop", "photometric"))
# Of the published config.py, for a script that has none beside it.
DEFAULTS: dict[str, Any] = {
    "data_root": "",
    "train_data_path": "faces_emore/imgs",
    "prefix": "default",
    "gpus": 1,
    "use_16bit": False,
    "epochs": 24,
    "seed": 42,
    "batch_size": 256,
    "lr": 0.1,
    "lr_milestones": "8,12,14",
    "lr_gamma": 0.1,
    "arch": "ir_18",
    "momentum": 0.9,
    "head": "adaface",
    "m": 0.5,
    "h": 0.0,
    "s": 64.0,
    "t_alpha": 0.01,
    **dict.fromkeys(_AUGMENTED, 0.0),
    "accumulate_grad_batches": 1,
}


def _head(value: Any, values: Mapping[str, Any]) -> Became:
    options = {"adaface": ("m", "h", "s", "t_alpha"), "arcface": ("m", "s"), "cosface": ("m", "s")}
    if value not in options:
        raise unknown("head", str(value), options)
    given = {f"head.{name}": values[name] for name in options[value] if values.get(name) is not None}
    return Became({"head.margin": value} | given)


def _option(name: str) -> Rule:
    """An option of the head, which ``head`` has taken up."""

    def rule(value: Any, values: Mapping[str, Any]) -> Became:
        head = values.get("head")
        used = head == "adaface" or name in ("m", "s")
        return Became({}, f"head.{name}, see head" if used else f"{head} has none")

    return rule


def _arch(value: Any, values: Mapping[str, Any]) -> Became:
    if value not in _NETWORKS:
        raise unknown("arch", str(value), _NETWORKS)
    note = "their networks take BGR images: with bgr, weights go both ways"
    return Became({"model.name": value, "model.embedding_size": 512, "model.bgr": True}, note)


def _train_data(value: Any, values: Mapping[str, Any]) -> Became:
    root = str(values.get("data_root") or "").rstrip("/")
    note = "" if values.get("use_mxrecord") else "a folder identity/*.jpg is read as it is"
    return Became({"data.train": f"{root}/{value}" if root else value}, note)


def _batch_size(value: Any, values: Mapping[str, Any]) -> Became:
    gpus = max(1, int(values.get("gpus") or 1))
    return Became({"data.batch_size": int(value / gpus)}, f"a GPU: theirs is for all {gpus} of a node")


def _milestones(value: Any, values: Mapping[str, Any]) -> Became:
    epochs = [int(epoch) for epoch in str(value).strip("()[]").split(",")]
    settings = {"schedule.name": "step", "schedule.milestones": epochs, "schedule.gamma": values.get("lr_gamma", 0.1)}
    return Became(settings)


def _subset(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({}, "no subset by a list here: make a data set of it" if value else "")


def _augmentation(value: Any, values: Mapping[str, Any]) -> Became:
    given = [values.get(name) or 0 for name in _AUGMENTED]
    if not any(given):
        return Became({}, "none")
    told = ", ".join(f"{probability:g}" for probability in given)
    note = f"the set adaface has 0.2 for low resolution, crop and colours each; theirs are {told}"
    return Became({"data.augment": "adaface"}, "" if given == [0.2] * 3 else note)


def _start(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"model.init_from": value} if value else {})


def _classes(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"head.num_classes": value}) if value and value > 0 else Became({}, "the data's")


ADAFACE: dict[str, Rule] = {
    "data_root": taken_up("in data.train"),
    "train_data_path": _train_data,
    "val_data_path": Without("verify.bins are looked for beside the training data"),
    "use_mxrecord": Without("the kind of data is told from the folder"),
    "train_data_subset": _subset,
    "swap_color_channel": Without("images are read as RGB, whatever wrote them"),
    "prefix": lambda value, _: Became({"output": f"runs/{value}"}),
    "gpus": taken_up("torchrun --nproc_per_node=N"),
    "distributed_backend": Without("torchrun"),
    "use_16bit": lambda value, _: Became({"precision": "bf16" if value else "fp32"}),
    "epochs": renamed("schedule.epochs"),
    "seed": renamed("seed", "order and initial weights are others nevertheless"),
    "batch_size": _batch_size,
    "lr": renamed("optim.lr", "for the whole batch, as theirs"),
    "lr_milestones": _milestones,
    "lr_gamma": taken_up("schedule.gamma, see lr_milestones"),
    "num_workers": Without("decoding threads are found by the machine's cores (data.threads: auto)"),
    "use_wandb": Without("log.sinks are jsonl, tensorboard, wandb, mlflow, or one of your own (docs/extending.md)"),
    "custom_num_class": _classes,
    "start_from_model_statedict": _start,
    "arch": _arch,
    "momentum": renamed("optim.momentum"),
    "weight_decay": Without("their code takes 5e-4 whatever is given"),
    "head": _head,
    **{name: _option(name) for name in ("m", "h", "s", "t_alpha")},
    **dict.fromkeys(_AUGMENTED, _augmentation),
    "accumulate_grad_batches": renamed("optim.accumulate"),
    **{
        name: Without("no counterpart: a command of its own here (evaluate.verification), or not needed")
        for name in ("fast_dev_run", "evaluate", "test_run", "save_all_models", "resume_from_checkpoint")
    },
}


def of_their_code() -> list[Row]:
    """What AdaFace's code does whatever is given."""
    decay = {"optim.weight_decay": 5e-4, "optim.groups": [{"match": "norms", "weight_decay": 0}]}
    return [
        Row("weight decay", 5e-4, Became(decay, "none for batch norms")),
        Row("gradient clipping", None, Became({"optim.clip": None})),
        Row("validation sets", 5, Became({"verify.bins": ["lfw", "cfp_fp", "agedb_30", "calfw", "cplfw"]})),
    ]
