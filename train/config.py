"""The configuration of a run: one YAML file, typed, with the defaults and what each key means."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator


class Section(BaseModel):
    """A section whose keys are all known."""

    model_config = ConfigDict(extra="forbid")


class OpenSection(Section):
    """A section that also takes the options of what it names (a network, a margin, a recipe); that one checks them."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})


class Data(Section):
    train: str = Field(description="train.rec or its folder, images root/identity/*.jpg, WebDataset shards, Parquet")
    batch_size: PositiveInt = Field(128, description="images a rank takes in a step")
    augment: str = Field("flip", description="augmentation set (pipelines.augment)")
    shuffle: Literal["global", "block", "none"] = Field("global", description="block reads runs of records: for disks")
    threads: PositiveInt = Field(4, description="decoding threads a rank")
    prefetch: PositiveInt = Field(3, description="batches decoded ahead")
    max_bad_fraction: float = Field(0.001, ge=0, le=1, description="stop when more images than this cannot be read")


class Model(OpenSection):
    name: str = Field(description="backbone (models.create_model); its options stand beside it")
    embedding_size: PositiveInt = 512
    input_size: PositiveInt = Field(112, description="images are decoded to this size")
    init_from: str | None = Field(
        None, description="weights to start from: any file or folder models.load_weights reads"
    )
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks (GPU only)")
    compile: bool = Field(False, description="torch.compile the backbone")


class Head(OpenSection):
    margin: str = Field("arcface", description="loss (losses.create_margin); its options stand beside it")
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the classes in a step (Partial FC)")
    mode: Literal["streamed", "dense"] = "streamed"
    kernels: Literal["torch", "triton"] = Field("torch", description="of a tile; triton needs a GPU")
    tile: PositiveInt | None = Field(None, description="class centres a tile; null chooses")
    fused: bool = Field(True, description="update centres in the backward pass; their gradient never exists")
    num_classes: PositiveInt | None = Field(None, description="null takes the data's")
    init_from: str | None = Field(
        None, description="run folder, Facemill's or arcface_torch's, whose centres come first"
    )


class Recipe(OpenSection):
    name: str = Field("plain", description="what a step does beside the margin loss; its options stand beside it")


class Optim(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = Field(0.1, description="at the end of the warm-up, for the whole global batch")
    backbone_lr: PositiveFloat = Field(1.0, description="the backbone's share of lr; less for weights of init_from")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    clip: PositiveFloat | None = Field(5.0, description="largest norm of the backbone's gradient; null for none")
    accumulate: PositiveInt = Field(1, description="batches a step")
    compress: Literal["none", "bf16", "fp16"] = Field("none", description="gradients between ranks")


class Schedule(Section):
    name: Literal["polynomial", "cosine", "step", "constant"] = "polynomial"
    epochs: PositiveFloat = 20
    warmup_epochs: float | None = Field(None, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    power: PositiveFloat = Field(2.0, description="of the polynomial")
    milestones: list[float] = Field([], description="epochs after which a step schedule multiplies by gamma")
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _one_warmup(self) -> "Schedule":
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("state the warm-up in warmup_epochs or in warmup_steps, not both")
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones belong to the schedule 'step', which needs them")
        return self


class Verify(Section):
    bins: list[str] = Field([], description="verification sets: paths, or names of .bin files beside the training data")
    every_steps: PositiveInt = 2000
    batch_size: PositiveInt = 256


class Checkpoint(Section):
    every_steps: PositiveInt = 5000
    keep: PositiveInt = Field(3, description="newest checkpoints to keep")
    resume: Literal["auto", "never"] = Field("auto", description="go on where the output folder's run stopped")


class Log(Section):
    every_steps: PositiveInt = 50
    tensorboard: bool = True


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
    log: Log = Log()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output: str = Field(description="folder of the run")
    seed: int = Field(2048, ge=0, lt=2**31)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ValueError: naming the file and each wrong key or value; an unknown key comes with the nearest known one.
        OSError: the file cannot be read.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold sections such as data: and model:")
    for override in overrides:
        _override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_explain(problem) for problem in error.errors())}") from None


def _override(tree: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"an override is section.key=value, not {text!r}")
    *sections, key = name.split(".")
    for section in sections:
        if not isinstance(tree.get(section) or {}, dict):
            raise ValueError(f"{name}: {section} is a value, not a section")
        tree[section] = tree.get(section) or {}
        tree = tree[section]
    try:
        tree[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"the value of {text!r} is not YAML") from None


def _explain(problem: dict[str, Any]) -> str:
    *sections, key = [str(part) for part in problem["loc"]] or [""]
    name = ".".join([*sections, key])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [known.rpartition(".")[2] for known in _keys(sections)], 1, 0.0)
        return f"unknown key {name}; did you mean {'.'.join([*sections, near[0]])}?"
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _keys(sections: list[str]) -> Iterator[str]:
    model: type[BaseModel] = Config
    for section in sections:
        model = model.model_fields[section].annotation
    yield from model.model_fields
