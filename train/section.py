"""What every section of a config is: typed keys, and the options of what it names, checked as its own keys are."""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from pipelines.common.errors import UserError, unknown


class Section(BaseModel):
    """A section whose keys are all known, and whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # as for every field's validator
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and not {bool, Any} & {kind, *get_args(kind)}:
            raise UserError(f"must not be {str(value).lower()}")
        return value

    @classmethod
    def sections(cls) -> dict[str, type["Section"]]:
        """The sections in this one, by their keys."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


class OpenSection(Section):
    """A section that also takes the options of what it names: a network, a margin, a recipe.

    The annotations of the constructor say what an option may be, ``Annotated[float, Field(gt=0)]`` for example.

    Attributes:
        chooser: the key that names it.
        table: the constructors by name.
    """

    model_config = ConfigDict(extra="allow")

    chooser: ClassVar[str] = "name"
    table: ClassVar[Mapping[str, Callable]]

    @classmethod
    def options_of(cls, name: str) -> type[Section]:
        """The options of what is called ``name``: a parameter of its constructor each, but for the section's keys."""
        parameters = cls.parameters_of(name)
        fields: dict[str, Any] = {
            p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in cls.model_fields
        }
        return create_model(name, __base__=Section, **fields)

    @classmethod
    def parameters_of(cls, name: str) -> Iterable[inspect.Parameter]:
        """The parameters of the constructor of ``name``."""
        return inspect.signature(cls.table[name]).parameters.values()

    @model_validator(mode="after")
    def _check_options(self) -> "OpenSection":
        options = self.options_of(getattr(self, self.chooser)).model_validate(self.options)
        self.__pydantic_extra__ = options.model_dump(exclude_unset=True)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})


def one_of(kind: str, known: Mapping[str, Any]) -> AfterValidator:
    """A name that must be a key of a table of things of a ``kind``."""

    def check(name: str) -> str:
        if name not in known:
            raise unknown(kind, name, known)
        return name

    return AfterValidator(check)


def _expanded(path: str) -> str:
    if not path.strip():
        raise UserError("must not be empty")
    for name in re.findall(r"\$(\w+|\{[^}]*\})", path, re.ASCII):
        if not os.environ.get(name.strip("{}")):
            raise UserError(f"the variable {name.strip('{}')} in {path} is not set")
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111  globs and names of sets are no paths
    if expanded.startswith("~"):
        raise UserError(f"there is no home folder {path.partition('/')[0]}")
    return expanded


# A path with ~ and $VARIABLES in it, as a shell would take it.
LocalPath = Annotated[str, AfterValidator(_expanded)]
