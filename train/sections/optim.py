"""The optimiser of the backbone, and the learning rate's way."""

import inspect
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipelines.common.errors import UserError
from train.optim import OPTIMIZERS, REFUSED, parameters_of_rule
from train.section import OpenSection, Section, one_of


class Group(Section):
    match: str = Field(
        min_length=1,
        description="norms, biases, or a pattern of parameters' names, such as layer1.*; ! in front means all others; "
        "those of a recipe begin with recipe.",
    )
    weight_decay: float | None = Field(None, ge=0, description="of these parameters; null takes optim's")
    lr: PositiveFloat = Field(1.0, description="their share of the learning rate, beside backbone_lr")


def _not_refused(name: Any) -> Any:
    if isinstance(name, str) and name in REFUSED:
        raise UserError(f"{name} {REFUSED[name]}, which a step here does not offer; take another, such as adamw")
    return name


class Optim(OpenSection):
    table: ClassVar = OPTIMIZERS

    name: Annotated[str, BeforeValidator(_not_refused), one_of("optimizer", OPTIMIZERS)] = Field(
        "sgd", description="optimiser of the backbone; its options, such as betas and eps, stand beside it"
    )
    lr: PositiveFloat = Field(0.1, description="learning rate at the end of the warm-up, for the whole global batch")
    backbone_lr: PositiveFloat = Field(1.0, description="the backbone's share of lr; less for weights of init_from")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd, rmsprop and muon")
    weight_decay: float = Field(5e-4, ge=0, description="of backbone, recipe and centres, all their parameters")
    groups: list[Group] = Field(
        [], description="parameters of backbone and recipe with other values; each belongs to the first that matches"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="a layer's learning rate over that of the next one; for backbones that name their layers, such as "
        "ViTs",
    )
    clip: PositiveFloat | None = Field(5.0, description="largest norm of the gradient; null for none")
    max_skipped: PositiveInt = Field(
        25, description="a step whose loss or gradient is not finite is left out; so many in a row end the run"
    )
    accumulate: PositiveInt = Field(1, description="batches a step")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay a step of the backbone's moving average, which is verified and saved; null for none",
    )
    compress: Literal["none", "bf16", "fp16"] = Field(
        "none", description="dtype in which the ranks exchange gradients; none: float32"
    )

    @classmethod
    def parameters_of(cls, name: str) -> Iterable[inspect.Parameter]:
        return parameters_of_rule(name).values()

    @property
    def rule(self) -> dict[str, Any]:
        """The arguments of the optimiser's constructor, but for the parameters and their rate."""
        shared = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        known = parameters_of_rule(self.name)
        return {name: value for name, value in shared.items() if name in known} | self.options

    @model_validator(mode="after")
    def _options_fit_together(self) -> "Optim":
        if self.options:  # only the constructor knows; the first one makes torch import its compiler, which takes long
            OPTIMIZERS[self.name]([{"params": [torch.zeros(1, 1), torch.zeros(1)]}], lr=self.lr, **self.rule)
        decays = [self.weight_decay, *(group.weight_decay for group in self.groups)]
        if any(decays) and "weight_decay" not in self.rule:
            raise UserError(f"{self.name} has no weight decay; set optim.weight_decay=0")
        return self


class Schedule(Section):
    name: Literal["polynomial", "cosine", "step", "constant"] = Field(
        "polynomial", description="how the learning rate falls after the warm-up"
    )
    epochs: PositiveFloat = Field(20, description="length of the run")
    warmup_epochs: NonNegativeFloat | None = Field(None, description="length of the linear warm-up, in epochs")
    warmup_steps: NonNegativeInt | None = Field(None, description="the same in steps; null for both means none")
    power: PositiveFloat = Field(2.0, description="exponent of the polynomial")
    milestones: list[PositiveFloat] = Field([], description="epochs after which a step schedule multiplies by gamma")
    gamma: PositiveFloat = Field(0.1, description="factor of the step schedule at a milestone")

    @model_validator(mode="after")
    def _one_warmup(self) -> "Schedule":
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise UserError("state the warm-up in warmup_epochs or in warmup_steps, not both")
        if (self.name == "step") != bool(self.milestones):
            raise UserError("milestones belong to the schedule 'step', which needs them")
        return self
