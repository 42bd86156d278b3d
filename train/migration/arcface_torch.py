"""The keys of arcface_torch's configs, and those of TransFace's and TopoFR's, which are arcface_torch with changes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.registry import BACKBONES
from pipelines.common.errors import UserError, unknown
from train.migration.translation import Became, Row, Rule, Without, renamed, taken_up

_MASKED = "their code masks 10 % of the patches, whatever the name says"
_HALF = "theirs is fp16 with a loss scale; precision: fp16 is that for the backbone, the head stays in bf16 on a GPU"


def _margin(value: Any, values: Mapping[str, Any]) -> Became:
    """As `CombinedMarginLoss` computes it, whose scale is 64 and whose gradient passes through the angle's margin."""
    m1, m2, m3 = value
    if m1 == 1 and m3 == 0:
        note = "gradient: straight_through is their code's (arccos and cos without gradient); exact is the formula's"
        return Became({"head.margin": "arcface", "head.s": 64, "head.m": m2, "head.gradient": "straight_through"}, note)
    if m3 > 0:
        alone = m1 == 1 and m2 == 0
        note = "" if alone else f"their code leaves out m1 and m2 where m3 is set: {m1}, {m2} never counted"
        return Became({"head.margin": "cosface", "head.s": 64, "head.m": m3}, note)
    raise UserError(f"margin_list {value} is refused by their code, too; a config of ours has head.margin: combined")


def _loss(value: Any, values: Mapping[str, Any]) -> Became:
    """The key of 2021's versions, before there was margin_list; its gradient passed through the margin."""
    margins = {"arcface": 0.5, "cosface": 0.4}
    if value not in margins:
        raise unknown("loss", str(value), margins)
    if "margin_list" in values:
        return Became({}, "margin_list says it")
    return Became({"head.margin": value, "head.s": 64, "head.m": margins[value]})


def _network(value: Any, values: Mapping[str, Any]) -> Became:
    if value not in BACKBONES:
        raise unknown("network", str(value), BACKBONES)
    settings: dict[str, Any] = {"model.name": value}
    notes = []
    if value.endswith("mask_005"):
        settings["model.mask_ratio"] = 0.1
        notes.append(_MASKED)
    if re.match(r"vit_[blh]", value):
        settings["model.checkpoint_activations"] = True
        notes.append("they compute activations again; false is faster where they fit (auto finds out)")
    return Became(settings, "; ".join(notes))


def _transface(value: Any, values: Mapping[str, Any]) -> Became:
    match = re.fullmatch(r"vit_([tsbl])(_dp005_mask_?(\d*))?", str(value))
    if not match:
        raise unknown("network of TransFace", str(value), ("vit_t", "vit_s", "vit_b", "vit_l_dp005_mask_005"))
    size, published, mask = match.groups()
    settings: dict[str, Any] = {"model.name": f"transface_{size}", "recipe.name": "transface"}
    settings["model.drop_path"] = 0.05 if published else 0.1
    settings["model.mask_ratio"] = 0.0 if published and not int(mask) else 0.1
    if size in "bl":
        settings["model.checkpoint_activations"] = True
    return Became(settings, _MASKED if int(mask or 0) else "")


def _topofr(value: Any, values: Mapping[str, Any]) -> Became:
    if value not in BACKBONES:
        raise unknown("network", str(value), BACKBONES)
    recipe = {"recipe.name": "topofr", "recipe.fit_scale": False, "recipe.confidence_weight": False}
    note = "fit_scale and confidence_weight: false are what their code does, true is the paper's"
    return Became({"model.name": value, "data.augment": "rsp"} | recipe, note)


def _rec(value: Any, values: Mapping[str, Any]) -> Became:
    if value == "synthetic":
        return Became({}, "random images, to time it; python -m benchmarks does that here. Add data.train=FOLDER")
    return Became({"data.train": value}, "the same folder: train.rec and train.idx, or identity/*.jpg")


def _batches(values: Mapping[str, Any]) -> int:
    return int(values.get("gradient_acc", 1))


def _lr(value: Any, values: Mapping[str, Any]) -> Became:
    if "decay_epoch" in values:
        return Became({"optim.lr": value}, "2021's versions multiplied it by their total batch / 512: do that here")
    batches = _batches(values) if values.get("optimizer", "sgd") == "sgd" else 1
    note = "for the whole batch, as theirs: nothing scales it with the number of GPUs"
    if batches > 1:
        note = f"theirs x {batches}: their step sums the gradients of gradient_acc batches, ours averages them"
    return Became({"optim.lr": value * batches}, note)


def _weight_decay(value: Any, values: Mapping[str, Any]) -> Became:
    batches = _batches(values) if values.get("optimizer", "sgd") == "sgd" else 1
    return Became({"optim.weight_decay": value / batches}, f"theirs / {batches}, see optim.lr" if batches > 1 else "")


def _momentum(value: Any, values: Mapping[str, Any]) -> Became:
    if values.get("optimizer", "sgd") != "sgd":
        return Became({}, "AdamW has none")
    return Became({"optim.momentum": 0.9}, "" if value == 0.9 else "their code takes 0.9 whatever the config says")


def _optimizer(value: Any, values: Mapping[str, Any]) -> Became:
    if value not in ("sgd", "adamw"):
        raise unknown("optimizer", str(value), ("sgd", "adamw"))
    return Became({"optim.name": value})


def _decay_epoch(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"schedule.name": "step", "schedule.milestones": list(value), "schedule.gamma": 0.1})


def _dali_aug(value: Any, values: Mapping[str, Any]) -> Became:
    if value and values.get("dali"):
        return Became({"data.augment": "arcface"}, "resize, blur, colour and grey, with their probabilities")
    return Became({}, "mirror images only (data.augment: flip): theirs takes it with dali only" if value else "")


def _save_all_states(value: Any, values: Mapping[str, Any]) -> Became:
    if value:
        return Became({"checkpoint.every_epochs": 1}, "beside one in checkpoint.every_steps; the newest 3 stay")
    return Became({}, "a run can always be resumed here: checkpoint.every_steps")


def _val_targets(value: Any, values: Mapping[str, Any]) -> Became:
    return Became(
        {"verify.bins": list(value)}, "beside train.rec; a set that is not there is an error here, not left out"
    )


def _fp16(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"precision": "bf16"}, _HALF) if value else Became({"precision": "fp32"})


def _interclass_filter(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"head.interclass_filter": value}) if value > 0 else Became({}, "0 is none, the default")


def _sample_rate(value: Any, values: Mapping[str, Any]) -> Became:
    if not value:
        return Became(
            {"head.sample_rate": 1e-6}, "0 there draws the classes of the batch alone, as any rate that small"
        )
    return Became({"head.sample_rate": value}, "the number drawn is theirs in the mean; classes not drawn rest")


def _output(value: Any, values: Mapping[str, Any]) -> Became:
    return Became({"output": f"runs/{Path(value).name}"}, "a folder of its own: a run of ours never writes into theirs")


_WANDB = "log.sinks: jsonl, tensorboard, wandb, mlflow, or one of your own (docs/extending.md)"

ARCFACE_TORCH: dict[str, Rule] = {
    "rec": _rec,
    "batch_size": renamed("data.batch_size", "images a GPU, as theirs"),
    "dali": taken_up("images are always decoded by DALI"),
    "dali_aug": _dali_aug,
    "num_workers": Without("decoding threads are found by the machine's cores (data.threads: auto)"),
    "num_image": Without("images are counted"),
    "network": _network,
    "embedding_size": renamed("model.embedding_size"),
    "margin_list": _margin,
    "loss": _loss,
    "interclass_filtering_threshold": _interclass_filter,
    "sample_rate": _sample_rate,
    "num_classes": renamed("head.num_classes", "may be left out: the data's"),
    "optimizer": _optimizer,
    "lr": _lr,
    "momentum": _momentum,
    "weight_decay": _weight_decay,
    "gradient_acc": renamed("optim.accumulate", "batches a step; a step here counts once, not once a batch"),
    "num_epoch": renamed("schedule.epochs"),
    "warmup_epoch": lambda value, _: Became({"schedule.warmup_epochs": max(0, value)}),
    "decay_epoch": _decay_epoch,
    "fp16": _fp16,
    "val_targets": _val_targets,
    "verbose": renamed("verify.every_steps"),
    "frequent": renamed("log.every_steps"),
    "save_all_states": _save_all_states,
    "resume": Without("a run goes on from its newest checkpoint by itself (checkpoint.resume: auto)"),
    "output": _output,
    "seed": renamed("seed", "order and initial weights are others nevertheless"),
    "dataset": Without("chooses among the config's own values"),
    "total_batch_size": Without("computed from the others"),
    "using_wandb": Without(_WANDB),
    "save_artifacts": Without(_WANDB),
    "suffix_run_name": Without(_WANDB),
    "notes": Without(_WANDB),
    **{f"wandb_{name}": Without(_WANDB) for name in ("key", "entity", "project", "log_all", "resume")},
}

_NEVER_READ = "their train.py never reads it: "

PROJECTS: dict[str, dict[str, Rule]] = {
    "arcface_torch": ARCFACE_TORCH,
    "transface": ARCFACE_TORCH | {"network": _transface, "gradient_acc": Without(_NEVER_READ + "one batch a step")},
    "topofr": ARCFACE_TORCH
    | {
        "network": _topofr,
        "gradient_acc": Without(_NEVER_READ + "one batch a step"),
        "margin_list": lambda value, _: Became(
            {"head.margin": "arcface", "head.s": 64, "head.m": 0.5}, _NEVER_READ + "arcface, 0.5"
        ),
        "sample_rate": lambda value, _: Became({"head.sample_rate": 1.0}, _NEVER_READ + "all classes"),
        "optimizer": lambda value, _: Became({"optim.name": "sgd"}, "" if value == "sgd" else _NEVER_READ + "sgd"),
        "interclass_filtering_threshold": Without(_NEVER_READ + "none"),
    },
}


def of_their_code(project: str, values: Mapping[str, Any], power: float, why: str) -> list[Row]:
    """What their code does whatever the config says."""
    schedule = Became({"schedule.name": "polynomial", "schedule.power": power}, why)
    clip = 5.0 / _batches(values)
    rows = [
        Row(
            "clip_grad_norm_",
            5,
            Became({"optim.clip": clip}, "theirs / gradient_acc" if clip < 5 else "of the backbone"),
        )
    ]
    if "decay_epoch" not in values:
        rows.insert(0, Row("lr_scheduler.py", f"power {power:g}", schedule))
    if project == "arcface_torch":
        note = "gradients travel in float32; optim.compress: fp16 is theirs, between GPUs without NVLink"
        rows.append(Row("fp16_compress_hook", True, Became({"optim.compress": "none"}, note)))
    return rows
