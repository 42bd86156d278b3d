"""The optimisers by name, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from pipelines.common.errors import UserError, unknown
from train.groups import Groups, parameters_of

if TYPE_CHECKING:  # a config names an optimiser of the table
    from train.config import Optim, Schedule


def sgd(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    """SGD with momentum."""
    optimizer = torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    if optim.momentum:  # made by a first step, it would be what lies in memory where that step is left out
        for parameter in parameters_of(groups):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    """AdamW, which has no use for ``optim.momentum``."""
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)


# From groups of parameters and the section ``optim`` of a config to their optimiser; ``lr`` is set anew before every
# step. A fused one can leave a step out without the host's knowledge (see `train.gate`); for others the host waits.
OPTIMIZERS: dict[str, Callable[[Groups, Optim], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}


def create_optimizer(groups: Groups, optim: Optim) -> torch.optim.Optimizer:
    """The optimiser ``optim.name`` of these parameters (see `train.groups`)."""
    if optim.name not in OPTIMIZERS:
        raise unknown("optimizer", optim.name, OPTIMIZERS)
    return OPTIMIZERS[optim.name](groups, optim)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over the ranks, as DistributedDataParallel does it for the network's; all ranks call."""
    if dist.get_world_size() == 1 or not parameters:
        return
    # A parameter that a rank's step did not need counts there as 0: all ranks must sum the same numbers.
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = gradient.view_as(parameter)


class LearningRate:
    """The learning rate as a pure function of the step.

    It climbs linearly through the warm-up, from ``lr / (W + 1)`` at step 0 to ``lr · W / (W + 1)`` at the last of its W
    steps, is ``lr`` at step W, and falls from there by the schedule. It is never zero.

    Args:
        steps_per_epoch: exactly; with accumulated batches it need not be a whole number.
    """

    def __init__(self, config: Schedule, lr: float, steps_per_epoch: int | Fraction) -> None:
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
        epoch = float(step / self.steps_per_epoch)  # rounded once: epoch 1.1 of 10 steps begins at step 11, not later
        return self.lr * self.config.gamma ** sum(epoch >= milestone for milestone in self.config.milestones)
