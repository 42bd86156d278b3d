"""Training recipes by name."""

from typing import Any

from pipelines.common.errors import UserError, unknown
from train.recipes.contraface import ContraFace
from train.recipes.distill import Distill
from train.recipes.recipe import Recipe, Run, StepResult
from train.recipes.topofr import TopoFR
from train.recipes.transface import TransFace

RECIPES: dict[str, type[Recipe]] = {
    "plain": Recipe,
    "transface": TransFace,
    "topofr": TopoFR,
    "contraface": ContraFace,
    "distill": Distill,
}


def create_recipe(name: str, **options: Any) -> Recipe:
    """A recipe by name; options it does not know are named."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    try:
        return RECIPES[name](**options)
    except TypeError as error:
        raise UserError(f"recipe {name!r}: {error}") from None


__all__ = ["RECIPES", "ContraFace", "Distill", "Recipe", "Run", "StepResult", "TopoFR", "TransFace", "create_recipe"]
