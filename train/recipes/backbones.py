"""What a recipe may ask of a backbone beside its embeddings: a backbone that has it works, whichever it is."""

from collections.abc import Callable
from inspect import get_annotations
from typing import Protocol, TypeVar, cast

from torch import Tensor, nn

from losses import Margin
from pipelines.common.errors import UserError
from train.recipes.recipe import Recipe


class TwoPart(Protocol):
    """``head(trunk(images))`` is the embedding; the head may be applied more than once (recipe ``contraface``)."""

    dropout: nn.Dropout  # in the head; the recipe sets its ``p``

    def trunk(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) in [-1, 1] → features, of any shape (b, …)."""

    def head(self, features: Tensor) -> Tensor:
        """Features → (b, embedding_size), in training with a mask of its own by ``dropout``."""


class PatchWeighing(Protocol):
    """It weighs the patches of an image, whose grid is square (recipe ``transface``)."""

    patch_size: int  # a patch's side in pixels; what is left of the image at the right and below is in none

    def forward_patches(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, 3, h, w) in [-1, 1] → embeddings (b, d), patch weights (b, n), patch standard deviations (b, n).

        Patches are numbered row by row of the image; the standard deviation is over the numbers of a patch's token.
        """


class NormLast(Protocol):
    """It says which batch norm gives its embeddings their scale (see ``last_norm``)."""

    last_norm: nn.BatchNorm1d | nn.SyncBatchNorm | None


Ability = TypeVar("Ability")


def unfreeze_scale(backbone: nn.Module, recipe: Recipe, margin: Margin) -> None:
    """Make the weight of the last batch norm trainable where the recipe or the margin ``trains_scale``.

    Plain training keeps an iresnet's at 1. Other backbones train theirs; AdaFace's have none.
    """
    norm = last_norm(backbone)
    if (recipe.trains_scale or margin.trains_scale) and norm is not None and norm.affine:
        norm.weight.requires_grad_()


def require(backbone: nn.Module, ability: Callable[..., Ability], recipe: str, those: str) -> Ability:
    """The backbone, if it has all of a protocol. Else a ``ValueError`` names the recipe and what it lacks.

    Args:
        ability: the protocol; ``type[Ability]`` would be a class of which objects can be made.
        those: names of backbones that have it, for the message.
    """
    parts = {name: name for name in get_annotations(ability)}
    parts |= {name: f"{name}()" for name in vars(ability) if not name.startswith("_")}
    if missing := [part for name, part in parts.items() if not hasattr(backbone, name)]:
        raise UserError(f"recipe {recipe} needs a backbone with {' and '.join(missing)}, such as {those}")
    return cast(Ability, backbone)


def last_norm(backbone: nn.Module) -> nn.BatchNorm1d | nn.SyncBatchNorm | None:
    """The batch norm that gives the embeddings: `NormLast`'s, else the last one of the backbone's modules, if any."""
    norms = [module for module in backbone.modules() if isinstance(module, (nn.BatchNorm1d, nn.SyncBatchNorm))]
    return getattr(backbone, "last_norm", norms[-1] if norms else None)
