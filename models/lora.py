"""LoRA (Hu et al., 2022): weights that stay as they are, each with a trained update of low rank."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipelines.common.errors import UserError

# The names of an updated weight in a state dict: what torch's parametrization calls the original, and the update.
_ORIGINAL, _UPDATE = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """W (out, in, …) → W + alpha / rank · up · down, of which ``up`` (out, rank) starts at 0.

    A kernel counts as one row for each output channel: ``down`` (rank, in · …) is then a convolution to ``rank``
    channels, ``up`` one of 1 × 1.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(weight.new_empty(rank, columns).uniform_(-(columns**-0.5), columns**-0.5))
        self.register_buffer("scale", torch.tensor(alpha / rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return _updated(weight, self.up, self.down, self.scale)


def _updated(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    return weight + (scale * (up @ down)).view_as(weight)


def add_lora(model: nn.Module, rank: int, alpha: float, match: Sequence[str]) -> None:
    """Give the linear and the ungrouped convolutional layers whose weight's name matches a pattern an update.

    Layers so small that it would have as many numbers as their weight are left out. Only what is added is new: to
    freeze the rest is left to the caller.

    Raises:
        UserError: a pattern matches no such layer.
    """
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if _takes(layer, rank)}
    chosen: set[str] = set()
    for pattern in match:
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(
                f"model.lora: {pattern} matches the weight of no layer that an update of rank {rank} is smaller than; "
                f"names are such as {', '.join(list(layers)[:3])}"
            )
        chosen.update(found)
    for name, layer in layers.items():
        if name in chosen:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))


def _takes(layer: nn.Module, rank: int) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if not (isinstance(layer, nn.Linear) or isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return False
    rows, columns = layer.weight.flatten(1).shape
    return rank * (rows + columns) < rows * columns


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the updates added to their weights, under the names of the network without them."""
    tensors = {name: tensor for name, tensor in state.items() if _UPDATE not in name and not name.endswith(_ORIGINAL)}
    for name, weight in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            up, down, scale = (state[f"{layer}{_UPDATE}{part}"] for part in ("up", "down", "scale"))
            tensors[f"{layer}.weight"] = _updated(weight, up, down, scale)
    return tensors
