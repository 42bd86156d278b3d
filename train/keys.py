"""The keys of a config: a table of all, with defaults and meanings, and those of a tree with its values."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from train.section import OpenSection, Section


def key_table(root: type[Section]) -> str:
    """A line for each key: its name as an override takes it, its default, what it means."""
    rows = list(_rows(root, ""))
    name, default = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{row[0]:{name}}  {row[1]:{default}}  {row[2]}".rstrip() for row in rows)


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree of sections by ``section.key``, in order."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        values |= flattened(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return values


def _rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str]]:
    sections = section.sections()
    for key, field in section.model_fields.items():
        if key in sections:
            yield from _rows(sections[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _default(field), _meaning(field)
            several = "[]" if get_origin(field.annotation) is list else ""
            for member in get_args(field.annotation):
                if isinstance(member, type) and issubclass(member, Section):
                    yield from _rows(member, f"{prefix}{key}{several}.")
    if issubclass(section, OpenSection):
        names = ", ".join(section.table)
        yield f"{prefix}*", "", f"options of the {prefix}{section.chooser}, one of {names}"


def _default(field: FieldInfo) -> str:
    return "(required)" if field.is_required() else _text(field.default)


def _text(value: Any) -> str:
    """A value as YAML and overrides take it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return (field.description or "") + (f" ({', '.join(choices)})" if choices else "")
