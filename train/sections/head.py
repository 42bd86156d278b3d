"""The class centres: their loss, their sampling, their optimiser."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from losses import MARGINS, Margin, create_margin
from pipelines.common.errors import UserError
from train.section import LocalPath, OpenSection, Section, one_of
from train.sections.auto import Auto

CentreRule = Literal["sgd", "adamw", "lion"]  # what losses.CentreOptimizer knows
Beta = Annotated[float, Field(ge=0, lt=1)]


class CentreOptim(Section):
    name: CentreRule | None = Field(None, description="rule of the class centres; null takes optim.name")
    lr: NonNegativeFloat = Field(1.0, description="their share of optim.lr, through warm-up and schedule; 0: they stay")
    momentum: Beta | None = Field(None, description="of sgd; null takes optim.momentum")
    weight_decay: float | None = Field(None, ge=0, description="of the centres; null takes optim.weight_decay")
    betas: tuple[Beta, Beta] | None = Field(
        None, description="of adamw and lion; null takes optim's where the rule is the same, else the rule's own"
    )
    eps: PositiveFloat | None = Field(None, description="of adamw; null as for betas")


class Stage(Section):
    epoch: PositiveFloat = Field(description="where it begins, in epochs")
    sample_rate: float = Field(gt=0, le=1, description="share of the classes in a step from there on")


class Head(OpenSection):
    chooser: ClassVar = "margin"
    table: ClassVar = MARGINS

    margin: Annotated[str, one_of("margin", MARGINS)] = Field(
        "arcface", description="loss (losses.create_margin); its options stand beside it"
    )
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the classes in a step (Partial FC)")
    stages: list[Stage] = Field([], description="other values of sample_rate later in the run, as LVFace's: .1, then 1")
    warmup_epochs: NonNegativeFloat = Field(0, description="epochs in which the margin grows linearly from none")
    mode: Literal["streamed", "dense"] = Field("streamed", description="dense holds all logits, to compare with")
    kernels: Literal["torch", "triton"] = Field("torch", description="arithmetic of a tile; triton needs a GPU")
    tile: PositiveInt | Auto = Field("auto", description="class centres a tile; auto by the device's cache or memory")
    fused: bool = Field(True, description="update centres a tile at a time; the gradient of all never exists")
    num_classes: PositiveInt | None = Field(None, description="null takes the data's")
    init_from: LocalPath | None = Field(
        None, description="run folder, Facemill's or arcface_torch's, whose centres come first"
    )
    init: Literal["random", "class_means"] = Field(
        "random",
        description="where the centres that init_from does not have begin; class_means: where the network that the run "
        "begins with has the images of the class on average",
    )
    optim: CentreOptim = CentreOptim()

    @model_validator(mode="after")
    def _options_fit_together(self) -> "Head":
        margin = self.create_margin()
        if self.warmup_epochs and not margin.competitive:
            raise UserError(f"{self.margin} has no margin that head.warmup_epochs could let grow")
        if self.stages and not (self.fused and self.mode == "streamed"):
            raise UserError("head.stages change what is sampled, which takes head.fused and head.mode=streamed")
        starts = [stage.epoch for stage in self.stages]
        if starts != sorted(set(starts)):
            raise UserError(f"head.stages begin one after the other, not at epochs {starts}")
        return self

    def create_margin(self) -> Margin:
        """The margin that it names, with its options."""
        return create_margin(self.margin, **self.options)

    @property
    def highest_sample_rate(self) -> float:
        """Of all stages: what memory has to suffice for."""
        return max([self.sample_rate, *(stage.sample_rate for stage in self.stages)])
