"""The configuration of a run: one YAML file, typed, with the defaults and what each key means."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from losses import MARGINS
from models.registry import BACKBONES, model_arguments
from pipelines.common.errors import UserError
from pipelines.loading.augment import AUGMENTATIONS
from train import yaml_file
from train.mistakes import explain
from train.optim import OPTIMIZERS, REFUSED, parameters_of_rule
from train.progress import SINKS
from train.recipes import RECIPES
from train.section import LocalPath, OpenSection, Section, one_of

Auto = Literal["auto"]  # what `train.planning.automatic` finds a value for when the run starts


Value = TypeVar("Value")


def settled(value: Value | Auto) -> Value:
    """A value that may have been ``auto`` in the file, as it is in a run."""
    assert value != "auto"
    return value


class TrainingSet(Section):
    path: LocalPath = Field(description="as data.train where it is one path")
    weight: PositiveFloat = Field(1.0, description="how often each of its images comes in an epoch")
    labels: LocalPath = Field(
        "apart",
        description="its identities are others than those of all sets (apart), or the same as those of their names in "
        "the sets with shared labels (shared); or a file that says so of some, lines name<TAB>class",
    )
    images: LocalPath | None = Field(None, description="file with the numbers of the images that count; null for all")
    identities: LocalPath | None = Field(None, description="file with the names of the identities that count, likewise")


class Data(Section):
    train: list[TrainingSet] = Field(
        min_length=1,
        description="train.rec or its folder, images root/identity/*.jpg, WebDataset shards, Parquet, LMDB; or a list "
        "of such paths and of sections with the keys below",
    )
    changes: list[LocalPath] = Field(
        [], description="files of changed labels, as evaluate.labels writes them, of one of the sets or of all"
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

    @field_validator("train", mode="before")
    @classmethod
    def _paths_are_sets(cls, train: Any) -> Any:
        if not isinstance(train, list):
            if not isinstance(train, str | Mapping):
                raise UserError(f"must be a path or a list of data sets, not {brief(train)}")
            train = [train]
        return [{"path": entry} if isinstance(entry, str) else entry for entry in train]

    @field_serializer("train")
    def _short(self, train: list[TrainingSet]) -> Any:
        """As short as a user may write it."""
        sets = [entry.model_dump(exclude_defaults=True) for entry in train]
        paths = [entry["path"] if len(entry) == 1 else entry for entry in sets]
        return paths[0] if len(paths) == 1 else paths

    @property
    def told(self) -> str:
        """The training sets, for messages."""
        return ", ".join(entry.path for entry in self.train)


class Lora(Section):
    rank: PositiveInt = Field(8, description="of the update of a weight")
    alpha: PositiveFloat = Field(16, description="the update is multiplied by alpha / rank")
    match: list[str] = Field(
        ["*"], min_length=1, description="patterns of the weights' names; linear and ungrouped convolutional layers"
    )


class Model(OpenSection):
    table: ClassVar = BACKBONES

    name: Annotated[str, one_of("backbone", BACKBONES)] = Field(
        description="backbone (models.create_model), or timm/NAME; its options stand beside it"
    )
    embedding_size: PositiveInt = Field(512, description="numbers of an embedding")
    input_size: PositiveInt = Field(112, description="images are decoded to this size")
    init_from: LocalPath | None = Field(
        None, description="weights to start from: any file or folder models.load_weights reads"
    )
    freeze: list[str] = Field(
        [],
        description="parameters that are not trained: norms, biases, or patterns of names, such as layer1.*; batch "
        "norms frozen whole keep their running statistics and normalise by them",
    )
    lora: Lora | None = Field(
        None, description="train updates of low rank instead of the weights; they are part of the saved ones"
    )
    checkpoint_activations: bool | Auto = Field(
        False, description="compute activations again for the gradient; auto where they do not fit into the memory"
    )
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks (GPU only)")
    compile: bool = Field(False, description="torch.compile the backbone for training")

    @model_validator(mode="after")
    def _lora_freezes(self) -> "Model":
        if self.lora and self.freeze:
            raise UserError("lora freezes the whole backbone: leave out freeze")
        return self

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

    @property
    def trained(self) -> str:
        """What of the backbone is trained, as a checkpoint notes it: the parameters of the optimiser depend on it."""
        return f"all but {self.freeze}" if self.freeze else str(self.lora) if self.lora else "all"


CentreRule = Literal["sgd", "adamw", "lion"]  # what losses.CentreOptimizer knows
Decay = Annotated[float, Field(ge=0, lt=1)]


class CentreOptim(Section):
    name: CentreRule | None = Field(None, description="rule of the class centres; null takes optim.name")
    lr: PositiveFloat = Field(1.0, description="their share of optim.lr, through warm-up and schedule")
    momentum: Decay | None = Field(None, description="of sgd; null takes optim.momentum")
    weight_decay: float | None = Field(None, ge=0, description="of the centres; null takes optim.weight_decay")
    betas: tuple[Decay, Decay] | None = Field(
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
        margin = MARGINS[self.margin](**self.options)
        if self.warmup_epochs and not margin.competitive:
            raise UserError(f"{self.margin} has no margin that head.warmup_epochs could let grow")
        if self.stages and not (self.fused and self.mode == "streamed"):
            raise UserError("head.stages change what is sampled, which takes head.fused and head.mode=streamed")
        starts = [stage.epoch for stage in self.stages]
        if starts != sorted(set(starts)):
            raise UserError(f"head.stages begin one after the other, not at epochs {starts}")
        return self

    @property
    def highest_sample_rate(self) -> float:
        """Of all stages: what memory has to suffice for."""
        return max([self.sample_rate, *(stage.sample_rate for stage in self.stages)])


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


def _not_refused(name: Any) -> Any:
    if name in REFUSED:
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
        description="factor of the backbone's rate from each layer to the one before, as ViTs name theirs",
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
    precision: Literal["bf16", "fp16", "fp32"] | Auto = Field(
        "bf16",
        description="of the arithmetic; weights are float32; auto: bf16, on a processor without products of it fp32",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where each rank has a device")
    output: LocalPath = Field(description="folder of the run")
    seed: int = Field(2048, ge=0, lt=2**63, description="of everything random: weights, order, augmentation, dropout")

    @property
    def centre_rule(self) -> dict[str, Any]:
        """The arguments of `losses.CentreOptimizer` that say how centres move."""
        own, optim = self.head.optim, self.optim
        name = own.name or optim.name
        inherited = {"momentum": optim.momentum, "weight_decay": optim.weight_decay}
        if name == optim.name:
            inherited |= {key: value for key, value in optim.options.items() if key in ("betas", "eps")}
        stated = own.model_dump(exclude={"name", "lr"}, exclude_none=True)
        return {"algorithm": name, "lr": optim.lr * own.lr, **inherited, **stated}

    @model_validator(mode="after")
    def _centres_have_a_rule(self) -> "Config":
        rule, rules = self.centre_rule["algorithm"], get_args(CentreRule)
        if rule not in rules:
            raise UserError(f"class centres have no rule {rule!r}; set head.optim.name to {' or '.join(rules)}")
        of_others = {"sgd": ("betas", "eps"), "adamw": ("momentum",), "lion": ("momentum", "eps")}[rule]
        for key in of_others:
            if getattr(self.head.optim, key) is not None:
                raise UserError(f"head.optim.{key} is nothing that {rule}, the rule of the centres, knows")
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
