"""What of a network a run leaves as it is: the parameters that ``model.freeze`` names, or all but what LoRA adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from models.lora import add_lora
from pipelines.common.errors import UserError
from train.groups import matches, named

if TYPE_CHECKING:  # a config knows nothing of networks
    from train.sections.model import Model


def restrict(backbone: nn.Module, model: Model) -> None:
    """Leave to training what the section ``model`` says, of a backbone that has its initial weights.

    Frozen parameters have no gradient, so no optimiser, weight decay, clipping or exchange between ranks knows them.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    parameters = named(backbone)
    for pattern in _patterns(model):
        found = [each for each in parameters if matches(each.name, each.of_norm, pattern)]
        if not found:
            names = ", ".join(each.name for each in parameters[:3])
            raise UserError(f"model.freeze: {pattern} matches no trained parameter; names are such as {names}")
        for each in found:
            each.parameter.requires_grad_(False)
    if model.lora:
        add_lora(backbone, model.lora.rank, model.lora.alpha, model.lora.match)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        names = ", ".join(each.name for each in parameters[-3:])
        raise UserError(
            "model.freeze leaves nothing of the backbone to train; freeze less, or set model.lora. "
            f"Its last names are {names}"
        )


def hold_norms(backbone: nn.Module, model: Model) -> None:
    """Put the batch norms that are frozen whole in evaluation mode, in a backbone in training mode.

    They normalise by their running statistics, as the network did that the weights are from, and keep them. Whether one
    is frozen is told by the names of its weight and bias, whether it has them or not.
    """
    for name, norm in backbone.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            own = (f"{name}.weight", f"{name}.bias")
            if all(any(matches(each, True, pattern) for pattern in _patterns(model)) for each in own):
                norm.eval()


def _patterns(model: Model) -> list[str]:
    return ["*"] if model.lora else model.freeze
