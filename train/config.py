"""The configuration of a run: one YAML file, typed, with the defaults and what each key means (`train.sections`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from pipelines.common.errors import UserError
from train import recipes, yaml_file
from train.mistakes import explain
from train.section import LocalPath, OpenSection, Section, one_of
from train.sections.auto import Auto
from train.sections.data import Data
from train.sections.head import CentreRule, Head
from train.sections.model import Model
from train.sections.optim import Optim, Schedule
from train.sections.running import Checkpoint, Dist, Log, Verify
from train.shipped import find_config


class Recipe(OpenSection):
    table: ClassVar = recipes.RECIPES

    name: Annotated[str, one_of("recipe", recipes.RECIPES)] = Field(
        "plain", description="what a step does beside the margin loss; its options stand beside it"
    )

    def create(self) -> recipes.Recipe:
        """The recipe that it names, with its options."""
        return recipes.create_recipe(self.name, **self.options)


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
        description="of the arithmetic; weights are float32; auto: bf16; without products of it fp16 (on a GPU with "
        "tensor cores) or fp32",
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

    def with_values(self, **sections: Mapping[str, Any]) -> "Config":
        """The config with other values in sections, which are not checked."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        )

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

    @model_validator(mode="after")
    def _margin_is_whole_in_the_end(self) -> "Config":
        if self.head.warmup_epochs >= self.schedule.epochs:
            raise UserError(
                f"head.warmup_epochs is {self.head.warmup_epochs:g}: in {self.schedule.epochs:g} epochs "
                "(schedule.epochs) the margin would never be whole"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, tree: Any) -> Any:
        """``verify:`` with nothing behind it means the defaults."""
        if not isinstance(tree, Mapping):
            return tree
        return {name: {} if value is None and name in cls.sections() else value for name, value in tree.items()}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or the config of a name (`train.shipped`); apply ``section.key=value`` overrides (YAML values).

    Raises:
        ValueError: naming the file and each wrong key or value; an unknown key comes with the nearest known one.
        OSError: the file cannot be read.
    """
    path = find_config(path)
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
