"""What a key of another trainer becomes here: settings, and what has to be said of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.common.errors import UserError
from train.migration.python_config import ANY_KEY, PythonConfig


@dataclass(frozen=True)
class Became:
    """Settings by their names here (``section.key``); none where there is no counterpart, and the note says why."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A key of theirs, or something that their code does whatever its config says, and what became of it."""

    key: str
    value: Any
    became: Became


# From a key's value, and all values, to what it becomes.
Rule = Callable[[Any, Mapping[str, Any]], Became]


def renamed(name: str, note: str = "") -> Rule:
    """The key has another name here."""
    return lambda value, _: Became({name: value}, note)


def taken_up(note: str) -> Rule:
    """The rule of another key makes use of it."""
    return lambda value, _: Became({}, note)


@dataclass(frozen=True)
class Without:
    """The rule of a key that has no counterpart, and why."""

    note: str

    def __call__(self, value: Any, values: Mapping[str, Any]) -> Became:
        return Became({}, self.note)


_UNKNOWN = Without("no key of theirs that is known here: see what your code does with it")


def translate(config: PythonConfig, rules: Mapping[str, Rule]) -> list[Row]:
    """A row for each key that is set, and one for each line that is not understood.

    Raises:
        UserError: such a line may set a key that has a counterpart, or a value is none that their code could use.
    """
    lines = {
        f"{line.file}, line {line.line}: {line.text.strip()}": None
        for line in config.unread
        if line.key == ANY_KEY or not isinstance(rules.get(line.key or "", _UNKNOWN), Without)
    }
    if lines:
        told = "; ".join(lines)
        raise UserError(f"only running the config would tell what is set here: {told}. Write the values in their place")
    keys = [
        Row(key, value, _applied(rules.get(key, _UNKNOWN), key, config.values)) for key, value in config.values.items()
    ]
    left = "not a constant, and not needed"
    return keys + [
        Row(line.key or f"{line.file}, line {line.line}", line.text.strip(), Became({}, left)) for line in config.unread
    ]


def _applied(rule: Rule, key: str, values: Mapping[str, Any]) -> Became:
    try:
        return rule(values[key], values)
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError):
        raise UserError(f"{key} = {values[key]!r} is no value of {key} that their code could use") from None
