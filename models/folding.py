"""Batch norms folded into the convolutions and linear layers in front of them, for inference."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.batch_norm import BatchNorm2d
from models.iresnet import Skipping

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d

# By their exact types: classes made from these do more, timm's batch norms an activation for example.
_LAYERS = {nn.Conv2d, Skipping, nn.Linear}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d}
# Largest change of the embedding that passes for rounding, relative to its length.
_TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Fold every batch norm right behind a convolution or linear layer into it, in place.

    Which follows which shows in a forward pass. Batch norms elsewhere stay: in front of a padded convolution they
    cannot be folded exactly. All stay where the embedding of a random image would become another, whatever a network
    does beside.

    Args:
        model: in evaluation mode.
        images: (b, 3, h, w), of which only the side, dtype and device matter. In half precision rounding passes for
            another embedding, so that nothing is folded.
    """
    image = torch.rand(1, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images) * 2 - 1
    pairs, embedding = _pairs(model, image)
    names = {module: name for name, module in model.named_modules()}
    before = [(layer, layer.weight, layer.bias) for layer, _ in pairs]
    for layer, norm in pairs:
        layer.weight, layer.bias = _folded(layer, norm)
        model.set_submodule(names[norm], nn.Identity())
    if _changes(model, image, embedding):
        for layer, weight, bias in before:
            layer.weight, layer.bias = weight, bias
        for _, norm in pairs:
            model.set_submodule(names[norm], norm)


def _pairs(model: nn.Module, image: Tensor) -> tuple[list[tuple[Layer, Norm]], Tensor]:
    """The layers whose output goes into a batch norm and nowhere else, with that; and the embedding of the image."""
    made: dict[int, tuple[Layer, Tensor]] = {}  # by the id of the output, which is kept alive
    found: list[tuple[Layer, Norm, Tensor]] = []

    def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module) in _LAYERS:
            made[id(output)] = module, output
            uses.count[_memory(output)] = 0  # of what lay there before
        elif type(module) in _NORMS and inputs and id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module, inputs[0]))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with _Uses() as uses:
            embedding = model(image)
    finally:
        for hook in hooks:
            hook.remove()
    alone = {(layer, norm): None for layer, norm, x in found if uses.count[_memory(x)] == 1 and _fits(layer, norm)}
    return list(alone), embedding


class _Uses(TorchDispatchMode):
    """Counts the operations that a tensor goes into, it or a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        return func(*args, **(kwargs or {}))


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _fits(layer: Layer, norm: Norm) -> bool:
    """Whether the norm has statistics, of the layer's channels, and the weight is not computed anew at each pass."""
    return (
        norm.running_mean is not None
        and len(norm.running_mean) == len(layer.weight)
        and isinstance(layer.weight, nn.Parameter)
    )


def _folded(layer: Layer, norm: Norm) -> tuple[nn.Parameter, nn.Parameter]:
    """The weight and bias of a layer that does what both do."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)  # rounded alike on every machine, as rsqrt is not
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return nn.Parameter(weight.to(layer.weight.dtype)), nn.Parameter(bias.to(layer.weight.dtype))


def _changes(model: nn.Module, image: Tensor, embedding: Tensor) -> bool:
    """Whether the embedding of ``image`` is another than ``embedding``; one that is not finite shows nothing."""
    try:
        change = model(image) - embedding
    except Exception:  # of any class: it ran before, so it misses something of a norm that is no longer there
        return True
    return bool(embedding.isfinite().all()) and not change.norm() <= _TOLERANCE * embedding.norm()
