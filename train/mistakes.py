"""What is wrong with a config, in a line: each key as the user wrote it, and the known key that was perhaps meant."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from reprlib import repr as brief
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.common.errors import UserError
from train.section import OpenSection, Section

_NEAR = 0.6  # of 1: keys less alike are no suggestion
_MEMBER = re.compile(r"bool|constrained-\w+|literal\[.*\]")  # how pydantic calls one of a key's several types


def explain(error: ValidationError, root: type[Section], tree: Mapping[str, Any]) -> str:
    """The problems of a config ``tree`` that is no ``root``, on one line."""
    options = {name: _options(section, tree.get(name)) for name, section in root.sections().items()}
    by_key: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for problem in error.errors():
        *key, last = problem["loc"] or ("",)
        of_several = problem["type"] != "extra_forbidden" and _MEMBER.fullmatch(str(last))
        by_key.setdefault(tuple(key) if of_several else problem["loc"], []).append(problem)
    return "; ".join(
        _explain(problems[0], root, options) if len(problems) == 1 else _explain_types(key, problems)
        for key, problems in by_key.items()
    )


def _explain_types(key: Sequence[int | str], problems: Sequence[Mapping[str, Any]]) -> str:
    """A value that is none of the types that its key may have."""
    wanted = [_wanted(problem) for problem in problems]
    return f"{'.'.join(map(str, key))}: must be {' or '.join(wanted)}, not {brief(problems[0]['input'])}"


def _wanted(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "literal_error":
        return problem["ctx"]["expected"].replace(" or ", ", ")
    return problem["msg"].partition(",")[0].removeprefix("Input should be ")


def _explain(problem: Mapping[str, Any], root: type[Section], options: Mapping[str, list[str]]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        section, _, key = name.rpartition(".")
        near, here = _nearest(section, key, root, options), options.get(section)
        return (
            f"unknown key {name}"
            + (f"; did you mean {near}?" if near else "")
            + (f" (options here: {', '.join(here)})" if here else "")
        )
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{name}: {reason}" if name else reason  # of the whole config
    if problem["type"] == "model_type":
        return f"{name} must be a section of keys and values, not {brief(problem['input'])}"
    value = "null" if problem["input"] is None else brief(problem["input"])
    return f"{name}: {problem['msg'].replace('Input should', 'must', 1)}, not {value}"


def _options(section: type[Section], values: Any) -> list[str]:
    """The names of the options that a section with these values takes."""
    if not issubclass(section, OpenSection):
        return []
    chosen = section.model_fields[section.chooser].default
    if isinstance(values, dict):
        chosen = values.get(section.chooser, chosen)
    try:
        return list(section.options_of(chosen).model_fields) if isinstance(chosen, str) else []
    except (KeyError, UserError):  # there is no such name, which is told as the mistake that it is
        return []


def _nearest(section: str, key: str, root: type[Section], options: Mapping[str, list[str]]) -> str | None:
    """The known key that is most like this one, of equals the one in its own section; None where none is near."""
    known = [("", name) for name in root.model_fields if not section or name not in options]
    known += [(name, k) for name, kind in root.sections().items() for k in [*kind.model_fields, *options[name]]]
    if section not in options and (inner := _section_at(section, root)):  # within another, or a list
        known += [(section, k) for k in inner.model_fields]
    near = max(known, key=lambda other: (_likeness(key.lower(), other[1]), other[0] == section))
    return ".".join(filter(None, near)) if _likeness(key.lower(), near[1]) >= _NEAR else None


def _section_at(path: str, root: type[Section]) -> type[Section] | None:
    """The section that lies at ``data.train.0``, say."""
    found: type[Section] | None = root
    for part in path.split("."):
        if found is None or part.isdecimal():
            continue
        kind = found.model_fields[part].annotation if part in found.model_fields else None
        sections = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, Section)]
        found = sections[0] if sections else None
    return found


def _likeness(word: str, known: str) -> float:
    if known in _initials(word) or word in _initials(known):  # learning_rate for lr, wd for weight_decay
        return 1.0
    return SequenceMatcher(None, word, known).ratio()


def _initials(word: str) -> list[str]:
    parts = word.split("_")
    return ["".join(part[:1] for part in parts)] if len(parts) > 1 else []
