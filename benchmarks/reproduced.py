"""Which published rows a network stands beside: those that its config trains, or that are named."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from evaluate.reporting.page import PUBLISHED
from pipelines.common.errors import UserError
from train.config import Config, load_config

Row = Mapping[str, Any]  # of published.json

# Of the model's section: where and how fast it was trained.
_MACHINE = {"compile", "checkpoint_activations", "sync_batchnorm"}


def label(row: Row) -> str:
    """As a report calls it."""
    return f"{row['method']} · {row['network']} · {row['data']}"


@cache
def published() -> list[Row]:
    return json.loads(PUBLISHED.read_text())["rows"]


def named(words: str) -> list[Row]:
    """The published rows in whose label all of these words are."""
    found = [row for row in published() if all(word in label(row).casefold() for word in words.casefold().split())]
    if not found:
        raise UserError(
            f"no published row has all of {words!r} in its name; "
            f"names are such as '{label(published()[0])}', in {PUBLISHED.relative_to(ROOT)}"
        )
    return found


def of_config(config: Config) -> list[Row]:
    """The published rows whose config trains the same network on data of the same name."""
    own = _network(config)
    return [row for row in published() if "config" in row and _network(_published_config(row["config"])) == own]


def other_settings(config: Config, row: Row) -> list[str]:
    """What differs from the row's own config in augmentation, optimiser and schedule: ``section.key``s."""
    theirs = _published_config(row["config"])
    found = []
    for section in ("optim", "schedule"):
        one, other = (getattr(either, section).model_dump() for either in (config, theirs))
        found += [f"{section}.{key}" for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return ["data.augment"] * (config.data.augment != theirs.data.augment) + found


@cache
def _published_config(name: str) -> Config:
    return load_config(ROOT / "configs" / f"{name}.yaml")


def _network(config: Config) -> dict[str, Any]:
    """What the network is that a config trains, and on which data: sets are known by their names."""
    model = {key: value for key, value in config.model.model_dump().items() if key not in _MACHINE}
    head = config.head
    return {
        "data": [Path(part.path).stem.casefold() for part in config.data.train],
        "model": model,
        "head": {"margin": head.margin, "options": head.options, "sampled": head.sample_rate, "stages": head.stages},
        "recipe": (config.recipe.name, config.recipe.options),
    }
