"""The optimisers by name, and the learning rate of a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import torch
from torch import Tensor

from pipelines.common.errors import UserError
from train.groups import Groups, parameters_of
from train.muon import MuonAdamW

if TYPE_CHECKING:  # a config names an optimiser of the table
    from train.sections.optim import Optim, Schedule


# What makes the optimiser of groups of parameters, by name: a class, whose options are its constructor's. Fused ones
# can leave a step out without the host's knowledge (see `train.gate`); for others the host waits.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "muon": MuonAdamW,
}
# Of torch.optim's the others, and why.
REFUSED = {"lbfgs": "evaluates a loss several times a step", "sparseadam": "is for sparse gradients"}
_FUSED = (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam)
# How an optimiser computes, not what; the objective of maximising.
_NO_OPTIONS = ("lr", "foreach", "fused", "capturable", "differentiable", "maximize")


def parameters_of_rule(name: str) -> dict[str, inspect.Parameter]:
    """What the optimiser of this name can be told of its rule, by name; rates that may be tensors are numbers here."""
    _, *parameters = inspect.signature(OPTIMIZERS[name], eval_str=True).parameters.values()
    return {p.name: p.replace(annotation=_numbers(p.annotation)) for p in parameters if p.name not in _NO_OPTIONS}


def _numbers(annotation: Any) -> Any:
    """A type without the tensors that torch.optim allows in the place of a number."""
    if get_origin(annotation) in (Union, UnionType):
        kept = [_numbers(kind) for kind in get_args(annotation) if kind is not Tensor]
        return Union[tuple(kept)]  # noqa: UP007  made from others
    if get_origin(annotation) is tuple:
        return tuple[tuple(map(_numbers, get_args(annotation)))]  # type: ignore[misc]  # made from others
    return annotation


def create_optimizer(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    """The optimiser ``optim.name`` of these parameters (see `train.groups`)."""
    kind = OPTIMIZERS[optim.name]
    optimizer = kind(groups, lr=optim.lr, **optim.rule, **({"fused": True} if kind in _FUSED else {}))
    if isinstance(optimizer, torch.optim.SGD) and optim.momentum:
        for parameter in parameters_of(groups):  # made by a first step, it would be what lies in memory if left out
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class LearningRate:
    """The learning rate as a pure function of the step.

    It climbs linearly through the warm-up, from ``lr / (W + 1)`` at step 0 to ``lr · W / (W + 1)`` at the last of its W
    steps, is ``lr`` at step W, and falls from there by the schedule. It is never zero.
    """

    def __init__(self, config: Schedule, lr: float, steps_per_epoch: int) -> None:
        self.config, self.lr, self.steps_per_epoch = config, lr, steps_per_epoch
        self.total = max(1, round(config.epochs * steps_per_epoch))
        self.warmup = config.warmup_steps or round((config.warmup_epochs or 0) * steps_per_epoch)
        if self.warmup >= self.total:
            raise UserError(f"a warm-up of {self.warmup} steps does not fit into a run of {self.total} steps")

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, … total - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / (self.total - self.warmup)
        if self.config.name == "polynomial":
            return self.lr * (1 - done) ** self.config.power
        if self.config.name == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        epoch = step / self.steps_per_epoch  # rounded once: epoch 1.1 of 10 steps begins at step 11, not later
        return self.lr * self.config.gamma ** sum(epoch >= milestone for milestone in self.config.milestones)
