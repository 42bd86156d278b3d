"""What the options of recipes and networks may be is told alike by what makes them and by a config."""

import math
from inspect import signature

import pytest

from models import create_model
from models.registry import BACKBONES
from pipelines.common.arguments import check_arguments
from pipelines.common.errors import UserError
from train.config import validated
from train.recipes import RECIPES, Recipe, create_recipe

RECIPE_NONSENSE = [
    ("transface", {"probability": 1.5}, "probability must be less than or equal to 1, not 1.5"),
    ("topofr", {"topology": -1}, "topology must be greater than or equal to 0, not -1"),
    ("topofr", {"topology": math.inf}, "topology must be a finite number, not inf"),
    ("contraface", {"dropout": 1}, "dropout must be less than 1, not 1"),
    ("distill", {"teacher": "x", "view": "other"}, "view must be 'clean' or 'same', not 'other'"),
]
NETWORK_NONSENSE = [
    ("r18", {"width": 0}, "width must be greater than 0, not 0"),
    ("r18", {"pool": "round"}, "pool must be 'flat' or 'pair_relation', not 'round'"),
    ("mbf", {"width": 17}, "width must be less than or equal to 16, not 17"),
    ("vit_t", {"drop_path": 1.0}, "drop_path must be less than 1, not 1.0"),
    ("vit_t", {"registers": 1.5}, "registers must be a valid integer"),
]


def config_says(section, name, options):
    tree = {"data": {"train": "x"}, "output": "y", "model": {"name": "mbf"}, "head": {"margin": "cosface"}}
    with pytest.raises(UserError) as told:
        validated(tree | {section: {"name": name, **options}}, "a.yaml")
    return str(told.value)


@pytest.mark.parametrize("name, options, wrong", RECIPE_NONSENSE)
def test_recipes(name, options, wrong):
    with pytest.raises(UserError) as told:
        create_recipe(name, **options)
    assert str(told.value) == f"{RECIPES[name].__name__}: {wrong}"
    assert wrong.split(",")[0].replace(" ", ": ", 1) in config_says("recipe", name, options)


@pytest.mark.parametrize("name, options, wrong", NETWORK_NONSENSE)
def test_networks(name, options, wrong):
    with pytest.raises(UserError) as told:
        create_model(name, 16, 32, **options)
    assert str(told.value).startswith(f"{name}: {wrong}")
    assert wrong.split(",")[0].replace(" ", ": ", 1) in config_says("model", name, options)


def test_a_recipe_of_ones_own_is_checked_too():
    class Own(Recipe):
        def __init__(self, share: float, anything=None) -> None:
            super().__init__()
            self.share = share

    assert Own(0.5, "a").share == 0.5
    with pytest.raises(UserError, match="Own: share must be a valid number, not 'much'"):
        Own("much")


@pytest.mark.parametrize("name", BACKBONES)
def test_what_networks_take_by_default_is_allowed(name):
    defaults = {p.name: p.default for p in signature(BACKBONES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    check_arguments(BACKBONES[name], defaults, name)
