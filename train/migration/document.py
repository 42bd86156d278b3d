"""What a migration writes and prints: a config of ours with comments, and the table of what became of each key."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.common.errors import escaped
from train.config import Config, apply_override
from train.migration.translation import Row

_WIDTH = 120


def tree_of(rows: Sequence[Row], overrides: Sequence[str]) -> dict[str, Any]:
    """The sections of a config; a later row and an override replace what was there. Raises ``UserError``."""
    tree: dict[str, Any] = {}
    for row in rows:
        for name, value in row.became.settings.items():
            section, _, key = name.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[key] = value
    for override in overrides:
        apply_override(tree, override)
    return {name: tree[name] for name in Config.model_fields if name in tree} | tree


def yaml_text(tree: Mapping[str, Any], rows: Sequence[Row], overrides: Sequence[str], title: str) -> str:
    """The tree as YAML; over a setting what is to be known of it, unless an override has replaced it."""
    # Where a key became several settings, over the first of them.
    notes = {
        next(iter(row.became.settings)): row.became.note for row in rows if row.became.settings and row.became.note
    }
    for override in overrides:
        notes.pop(override.partition("=")[0], None)
    return "\n".join([*_comment(title, ""), *_lines(tree, notes)]) + "\n"


def _lines(tree: Mapping[str, Any], notes: Mapping[str, str], section: str = "") -> Iterator[str]:
    indent = "  " if section else ""
    for key, value in tree.items():
        name = f"{section}.{key}" if section else key
        if name in notes:
            yield from _comment(notes[name], indent)
        if isinstance(value, dict) and not section:
            yield f"{key}:"
            yield from _lines(value, notes, key)
        else:
            yield f"{indent}{key}: {_flow(value)}"


def _comment(text: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)


def _flow(value: Any) -> str:
    """A value on one line, as YAML and overrides take it."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
        .removesuffix("...\n")
        .strip()
    )


def table(rows: Sequence[Row]) -> Table:
    """A line for each of their keys: its value, what it is here, and what is to be known."""
    made = Table(box=SIMPLE_HEAD)
    for title in ("theirs", "value", "here", ""):
        made.add_column(title, overflow="fold")
    above = ""
    for row in rows:
        note = row.became.note
        told = "as above" if note and note == above else note
        made.add_row(*map(escaped, (row.key, _theirs(row), _here(row), told)))
        above = note
    return made


def _theirs(row: Row) -> str:
    return "(not shown)" if row.key.endswith("_key") else repr(row.value)


def _here(row: Row) -> str:
    settings = row.became.settings
    return ", ".join(f"{name}: {_flow(value)}" for name, value in settings.items()) if settings else "-"
