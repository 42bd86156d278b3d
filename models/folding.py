"""Batch norms folded into the convolutions and linear layers in front of them, for inference."""

from typing import Any

import torch
from torch import Tensor, nn

from models.batch_norm import BatchNorm2d
from models.iresnet import Skipping

# By their exact types: classes made from these do more, timm's batch norms an activation for example.
_LAYERS = {nn.Conv2d, Skipping, nn.Linear}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d}


@torch.no_grad()
def fold_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Fold every batch norm right behind a convolution or linear layer into it, in place.

    Which follows which shows in a forward pass of ``images``. Batch norms elsewhere stay: in front of a padded
    convolution they cannot be folded exactly.
    """
    made: dict[int, tuple[nn.Conv2d | nn.Linear, Tensor]] = {}  # by the id of the output, which is kept alive
    pairs: list[tuple[nn.Conv2d | nn.Linear, nn.BatchNorm1d | nn.BatchNorm2d]] = []

    def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module) in _LAYERS:
            made[id(output)] = module, output
        elif type(module) in _NORMS and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model(images)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for layer, norm in pairs:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)  # rounded alike on every machine, as rsqrt is not
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        bias = shift if layer.bias is None else layer.bias * scale + shift
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
        model.set_submodule(names[norm], nn.Identity())
