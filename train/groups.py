"""Parameters in groups: which have a weight decay, or a share of the learning rate, of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from pipelines.common.errors import UserError

if TYPE_CHECKING:  # a config names an optimiser, which takes groups
    from train.sections.optim import Group, Optim

# As torch.optim takes them; ``lr_scale`` is a group's share of the rate of a step.
Groups = list[dict[str, Any]]


@runtime_checkable
class Layered(Protocol):
    """A backbone that says in which order images pass its parameters (``optim.layer_decay``)."""

    def layer_parameters(self) -> Sequence[Sequence[nn.Parameter]]:
        """The parameters of each layer, from the images on; those in none make the embedding from the last one."""


_NORM = re.compile(r"Norm(Act)?(\dd)?(Fp32)?$")


def trained_groups(backbone: nn.Module, recipe: nn.Module, optim: Optim) -> tuple[Groups, Groups]:
    """The trained parameters of backbone and recipe, each in the first of ``optim.groups`` that matches it.

    Those that none matches are a group of their own, with the values of ``optim``. With ``optim.layer_decay`` a group
    becomes one for each layer of the backbone.

    Raises:
        UserError: a group gets no parameter, or the backbone has no layers to tell of.
    """
    own = named(backbone)
    known = {id(parameter) for parameter in backbone.parameters()}
    others = [each for each in named(recipe, "recipe.") if id(each.parameter) not in known]
    rules = [_rule(each, optim.groups) for each in [*own, *others]]
    for index, group in enumerate(optim.groups):
        if index not in rules:
            names = ", ".join(each.name for each in own[:3])
            raise UserError(
                f"optim.groups.{index}: {group.match} matches no trained parameter that is left to it; "
                f"names are such as {names}"
            )
    return _grouped(own, optim, optim.backbone_lr, _layer_shares(backbone, optim.layer_decay)), _grouped(others, optim)


def parameters_of(groups: Groups) -> list[nn.Parameter]:
    """All parameters of the groups."""
    return [parameter for group in groups for parameter in group["params"]]


class Named(NamedTuple):
    """A parameter, the name that patterns are compared with, and whether a norm has it."""

    name: str
    parameter: nn.Parameter
    of_norm: bool


def named(module: nn.Module, prefix: str = "") -> list[Named]:
    """The trained parameters of a module, each once."""
    norms = {
        id(parameter) for part in module.modules() if _is_norm(part) for parameter in part.parameters(recurse=False)
    }
    parameters = module.named_parameters()
    return [Named(prefix + name, p, id(p) in norms) for name, p in parameters if p.requires_grad]


def _is_norm(module: nn.Module) -> bool:
    """Told by its name (BatchNorm2d, RmsNorm, LayerNorm2dFp32), for timm's own are no subclasses of torch's."""
    return _NORM.search(type(module).__name__) is not None


def _rule(each: Named, groups: Sequence[Group]) -> int:
    """The index of the group that takes a parameter; -1 for none."""
    return next((index for index, group in enumerate(groups) if matches(each.name, each.of_norm, group.match)), -1)


def matches(name: str, of_norm: bool, match: str) -> bool:
    """Whether ``norms``, ``biases`` or a pattern of names means a parameter; behind a ``!``, whether it does not."""
    if match.startswith("!"):
        return not matches(name, of_norm, match[1:])
    if match == "norms":
        return of_norm
    return name.endswith("bias") if match == "biases" else fnmatchcase(name, match)


def _layer_shares(backbone: nn.Module, decay: float) -> dict[int, float]:
    """Shares of the rate by the id of each parameter in a layer: ``decay`` for it and for each layer behind it.

    As BEiT has it (Bao et al., 2022): what makes the embedding has the whole rate, the last block ``decay`` of it.
    """
    if decay == 1:
        return {}
    if not isinstance(backbone, Layered):
        raise UserError("optim.layer_decay needs a backbone that names its layers by layer_parameters(), such as vit_b")
    layers = backbone.layer_parameters()
    return {id(p): decay ** (len(layers) - index) for index, layer in enumerate(layers) for p in layer}


def _grouped(
    members: Iterable[Named], optim: Optim, lr_scale: float = 1.0, shares: Mapping[int, float] = MappingProxyType({})
) -> Groups:
    taken: dict[tuple[int, float], list[nn.Parameter]] = {}
    for each in members:
        key = _rule(each, optim.groups), shares.get(id(each.parameter), 1.0)
        taken.setdefault(key, []).append(each.parameter)
    groups: Groups = []
    for (rule, share), parameters in sorted(taken.items(), key=itemgetter(0)):
        own = optim.groups[rule] if rule >= 0 else None
        decay = {} if own is None or own.weight_decay is None else {"weight_decay": own.weight_decay}
        groups.append({"params": parameters, "lr_scale": lr_scale * share * (own.lr if own else 1.0), **decay})
    return groups
