"""The configuration of a run: one YAML file, typed, with the defaults and what each key means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from losses import MARGINS
from models.registry import BACKBONES, model_arguments
from pipelines.common.errors import UserError
from pipelines.loading.augment import AUGMENTATIONS
from train import yaml_file
from train.mistakes import explain
from train.optim import OPTIMIZERS
from train.progress import SINKS
from train.recipes import RECIPES
from train.section import LocalPath, OpenSection, Section, one_of

Auto = Literal["auto"]  # what `train.planning.automatic` finds a value for when the run starts


Value = TypeVar("Value")


def settled(value: Value | Auto) -> Value:
    """A value that may have been ``auto`` in the file, as it is in a run."""
    assert value != "auto"
    return value


class Data(Section):
    train: LocalPath = Field(
        description="train.rec or its folder, images root/identity/*.jpg, WebDataset shards, Parquet"
    )
    batch_size: PositiveInt = Field(128, description="images a rank takes in a step")
    augment: Annotated[str, one_of("augmentation", AUGMENTATIONS)] = Field(
        "flip", description=f"augmentation set: {', '.join(AUGMENTATIONS)}"
    )
    landmarks: LocalPath | None = Field(
        None, description="landmarks.npy, float32 (images, 5, 2), for backbones that take some; null is the template's"
    )
    shuffle: Literal["global", "block", "none"] = Field(
        "global", description="order of images; block reads runs of records"
    )
    decode: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="where images are decoded for training; on the GPU those below a megapixel, as all aligned faces, "
        "still go half the way on the CPU",
    )
    hw_decoder_load: float = Field(
        0.65,
        ge=0,
        le=1,
        description="with decode: gpu, the share of the images that its JPEG unit takes, if it has one",
    )
    threads: PositiveInt | Auto = Field("auto", description="decoding threads a rank; auto by the machine's cores")
    prefetch: PositiveInt | Auto = Field(3, description="batches decoded ahead; auto by their size")
    max_bad_fraction: float = Field(0.001, ge=0, le=1, description="stop when more images than this cannot be read")


class Model(OpenSection):
    table: ClassVar = BACKBONES

    name: Annotated[str, one_of("backbone", BACKBONES)] = Field(
        description="backbone (models.create_model); its options stand beside it"
    )
    embedding_size: PositiveInt = Field(512, description="numbers of an embedding")
    input_size: PositiveInt = Field(112, description="images are decoded to this size")
    init_from: LocalPath | None = Field(
        None, description="weights to start from: any file or folder models.load_weights reads"
    )
    checkpoint_activations: bool | Auto = Field(
        False, description="compute activations again for the gradient; auto where they do not fit into the memory"
    )
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks (GPU only)")
    compile: bool = Field(False, description="torch.compile the backbone for training")

    @model_validator(mode="after")
    def _can_compute_again(self) -> "Model":
        if self.checkpoint_activations is True and not self.can_compute_again:
            raise UserError(f"{self.name} has no option checkpoint_activations")
        return self

    @property
    def can_compute_again(self) -> bool:
        """Whether the backbone knows ``checkpoint_activations``."""
        return "checkpoint_activations" in model_arguments(self.name)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `models.create_model`."""
        own = {"name": self.name, "embedding_size": self.embedding_size, "input_size": self.input_size}
        again = {"checkpoint_activations": True} if self.checkpoint_activations is True else {}
        return own | self.options | again


CentreRule = Literal["sgd", "adamw"]  # what losses.CentreOptimizer knows


class CentreOptim(Section):
    name: CentreRule | None = Field(None, description="rule of the class centres; null takes optim.name")


class Head(OpenSection):
    chooser: ClassVar = "margin"
    table: ClassVar = MARGINS

    margin: Annotated[str, one_of("margin", MARGINS)] = Field(
        "arcface", description="loss (losses.create_margin); its options stand beside it"
    )
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the classes in a step (Partial FC)")
    mode: Literal["streamed", "dense"] = Field("streamed", description="dense holds all logits, to compare with")
    kernels: Literal["torch", "triton"] = Field("torch", description="arithmetic of a tile; triton needs a GPU")
    tile: PositiveInt | Auto = Field("auto", description="class centres a tile; auto by the device's cache or memory")
    fused: bool = Field(True, description="update centres a tile at a time; the gradient of all never exists")
    num_classes: PositiveInt | None = Field(None, description="null takes the data's")
    init_from: LocalPath | None = Field(
        None, description="run folder, Facemill's or arcface_torch's, whose centres come first"
    )
    optim: CentreOptim = CentreOptim()

    @model_validator(mode="after")
    def _options_fit_together(self) -> "Head":
        MARGINS[self.margin](**self.options)
        return self


class Recipe(OpenSection):
    table: ClassVar = RECIPES

    name: Annotated[str, one_of("recipe", RECIPES)] = Field(
        "plain", description="what a step does beside the margin loss; its options stand beside it"
    )


class Group(Section):
    match: str = Field(
        min_length=1,
        description="norms, biases, or a pattern of parameters' names, such as layer1.*; those of a recipe begin with "
        "recipe.",
    )
    weight_decay: float | None = Field(None, ge=0, description="of these parameters; null takes optim's")
    lr: PositiveFloat = Field(1.0, description="their share of the learning rate, beside backbone_lr")


class Optim(Section):
    name: Annotated[str, one_of("optimizer", OPTIMIZERS)] = Field("sgd", description="optimiser of the backbone")
    lr: PositiveFloat = Field(0.1, description="learning rate at the end of the warm-up, for the whole global batch")
    backbone_lr: PositiveFloat = Field(1.0, description="the backbone's share of lr; less for weights of init_from")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="of backbone, recipe and centres, all their parameters")
    groups: list[Group] = Field(
        [], description="parameters of backbone and recipe with other values; each belongs to the first that matches"
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
    compress: Literal["none", "bf16", "fp16"] = Field("none", description="gradients between ranks")


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


class Verify(Section):
    bins: list[LocalPath] = Field(
        [], description="verification sets: paths, or names of .bin files beside the training data"
    )
    every_steps: PositiveInt = Field(2000, description="steps from one verification to the next")
    batch_size: PositiveInt = Field(256, description="images a rank embeds at a time")


class Checkpoint(Section):
    every_steps: PositiveInt = Field(5000, description="steps from one checkpoint to the next")
    every_epochs: PositiveInt | None = Field(None, description="beside these, one at the end of every so many epochs")
    every_minutes: PositiveFloat | None = Field(None, description="beside these, one when so many minutes have passed")
    keep: PositiveInt = Field(3, description="newest checkpoints to keep")
    resume: Literal["auto", "never"] = Field("auto", description="go on where the output folder's run stopped")


class Dist(Section):
    timeout: PositiveFloat = Field(600, description="seconds that a rank waits for the others before the run ends")
    start_timeout: PositiveFloat = Field(1800, description="the same until the first step is made")


class Log(Section):
    every_steps: PositiveInt = Field(50, description="steps from one line of figures to the next")
    sinks: list[Annotated[str, one_of("log sink", SINKS)]] = Field(
        ["jsonl", "tensorboard"], description="where the figures go beside the terminal"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_tensorboard(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and "tensorboard" in tree:
            raise UserError("the key tensorboard has become sinks: [jsonl, tensorboard], or [jsonl] for none")
        return tree


class Config(Section):
    """A run. See the sections for their keys."""

    data: Data
    model: Model
    head: Head = Head()
    recipe: Recipe = Recipe()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    verify: Verify = Verify()
    checkpoint: Checkpoint = Checkpoint()
    dist: Dist = Dist()
    log: Log = Log()
    precision: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="of the arithmetic; weights are float32")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where each rank has a device")
    output: LocalPath = Field(description="folder of the run")
    seed: int = Field(2048, ge=0, lt=2**63, description="of everything random: weights, order, augmentation, dropout")

    @property
    def centre_optimizer(self) -> str:
        """The rule of the class centres."""
        return self.head.optim.name or self.optim.name

    @model_validator(mode="after")
    def _centres_have_a_rule(self) -> "Config":
        if self.centre_optimizer not in get_args(CentreRule):
            rules = " or ".join(get_args(CentreRule))
            raise UserError(f"class centres have no rule {self.optim.name!r}; set head.optim.name to {rules}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, tree: Any) -> Any:
        """``verify:`` with nothing behind it means the defaults."""
        if not isinstance(tree, Mapping):
            return tree
        return {name: {} if value is None and name in cls.sections() else value for name, value in tree.items()}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ValueError: naming the file and each wrong key or value; an unknown key comes with the nearest known one.
        OSError: the file cannot be read.
    """
    tree = yaml_file.read(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as data: and model:")
    for override in overrides:
        apply_override(tree, override)
    return validated(tree, path)


def validated(tree: dict[str, Any], path: str | Path) -> Config:
    """The config that a tree of sections says, which errors call ``path``; raises as `load_config` does."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Config, tree)}") from None


def apply_override(tree: dict[str, Any], text: str) -> None:
    """Set what ``section.key=value`` says in a tree of sections. Raises ``UserError``."""
    name, equals, value = text.partition("=")
    if not equals or "" in name.split("."):
        raise UserError(f"an override is section.key=value, not {text!r}")
    *sections, key = name.split(".")
    for section in sections:
        if not isinstance(tree.get(section) or {}, dict):
            raise UserError(f"{name}: {section} is a value, not a section")
        tree[section] = tree.get(section) or {}
        tree = tree[section]
    try:
        tree[key] = yaml_file.parse(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
