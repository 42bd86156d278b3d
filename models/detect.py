"""Which backbone a state dict belongs to, told from the names and shapes of its tensors."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.edgeface import EdgeFace
from models.ir import IR
from models.iresnet import STAGE_CHANNELS, IResNet
from models.kprpe import BUCKETS, KeypointTransformer
from models.mobilefacenet import UNIT, MobileFaceNet
from models.mobilefacenet_paper import PaperMobileFaceNet, ReLU6MobileFaceNet
from models.registry import BACKBONES
from models.unmasked_vit import PATCH_SIZE as UNMASKED_PATCH_SIZE
from models.unmasked_vit import UnmaskedTransformer
from models.vit import PATCH_SIZE, TransFace, VisionTransformer
from pipelines.common.errors import UserError


def guess_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `create_model` for a state dict.

    The size of the input shows only through the last map, which several sizes share: 112 is preferred, else the
    largest is taken.

    Raises:
        ValueError: when the tensors are those of no known backbone.
    """
    try:
        for mark, guess in _GUESSES.items():
            if mark in tensors:
                return guess(tensors)
    except (KeyError, IndexError):
        pass
    raise UserError("these tensors belong to no backbone that is known here")


def backbone_prefixes(names: Collection[str], own: Collection[str] = ()) -> list[str]:
    """The prefixes of the backbones among ``names``, that of the most tensors first.

    Without a whole backbone it is the one prefix of the most tensors that could be a backbone's, if there are any.
    ``own``: names of the tensors of a backbone that need not be known here; where at least half of them are there, the
    prefixes are of that one alone.
    """
    for key in list(own)[:1]:
        ends = [name.removesuffix(key) for name in names if name.endswith(key)]
        if whole := [prefix for prefix in ends if 2 * sum(prefix + name in names for name in own) >= len(own)]:
            return sorted(whole, key=lambda prefix: -sum(prefix + name in names for name in own))
    found = Counter(name[: match.start(1)] for name in names if (match := _OF_A_BACKBONE.search(name)))
    prefixes = [prefix for prefix, _ in found.most_common()]
    return [prefix for prefix in prefixes if any(prefix + mark in names for mark in _GUESSES)] or prefixes[:1]


def _iresnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = tuple(_count(tensors, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    widths = [len(tensors[f"layer{stage}.0.conv1.weight"]) for stage in (1, 2, 3, 4)]
    width = _width(widths, STAGE_CHANNELS, multiple=8)
    pair_rank = len(tensors.get("pool.attention_p", ()))
    if pair_rank:  # neither the size of the input nor the share of the pairs shows: the defaults
        head: dict[str, Any] = {"embedding_size": len(tensors["fc.weight"]), "input_size": 112, "pool": "pair_relation"}
        head |= {"pair_rank": pair_rank} if pair_rank != 512 else {}
    else:
        head = {**_flat_head(tensors["fc.weight"], widths[-1])}
    return {
        "name": _name(IResNet, depths),
        **head,
        **({"width": width} if width != 1 else {}),
        **({"se": True} if "layer1.0.se_block.fc1.weight" in tensors else {}),
    }


def _ir(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = _count(tensors, r"body\.(\d+)\.")
    channels = [len(tensors[f"body.{i}.res_layer.4.weight"]) for i in range(blocks)]
    depths = tuple(channels.count(stage) for stage in STAGE_CHANNELS)
    se = "body.0.res_layer.se_block.fc1.weight" in tensors
    return {"name": _name(IR, depths, se=se), **_flat_head(tensors["output_layer.3.weight"])}


def _mobilefacenet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    depths = tuple(_count(tensors, rf"layers\.{stage}\.layers\.(\d+)\.layers\.0\.layers") for stage in (1, 3, 5, 7))
    narrow, hidden = tensors["layers.2.layers.2.layers.0.weight"].shape[:2]
    unit = hidden // 2
    height, breadth = tensors["features.layers.0.layers.0.weight"].shape[2:]
    if "layers.1.1.layers.0.weight" in tensors:
        name = _name(ReLU6MobileFaceNet)
    elif narrow == unit:
        name = _name(PaperMobileFaceNet)
    else:
        name = _name(MobileFaceNet, (depths[0] or 1, *depths[1:]), narrow // unit)
    return {
        "name": name,
        "embedding_size": len(tensors["features.layers.2.weight"]),
        "input_size": 16 * height,
        **({"width": unit / UNIT} if unit != UNIT else {}),
        **({"portrait": True} if breadth < height else {}),
    }


def _vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    _, patches, dim = tensors["pos_embed"].shape
    depth = _count(tensors, r"blocks\.(\d+)\.")
    side = math.isqrt(patches)
    return {
        "name": _name(TransFace if "senet.0.weight" in tensors else VisionTransformer, dim, depth),
        "embedding_size": len(tensors["feature.2.weight"]),
        "input_size": 112 if side == 112 // PATCH_SIZE else (side + 1) * PATCH_SIZE - 1,
        **({"registers": tensors["register_tokens"].shape[1]} if "register_tokens" in tensors else {}),
    }


def _edgeface(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    variants = {24: "edgenext_xx_small", 32: "edgenext_x_small", 48: "edgenext_small", 80: "edgenext_base"}
    variant = variants[len(tensors["model.stem.0.weight"])]
    low_rank = "model.head.fc.linear1.weight" in tensors
    gamma = {"edgenext_x_small": 0.6, "edgenext_small": 0.5}[variant] if low_rank else None
    return {
        "name": _name(EdgeFace, variant, gamma),
        "embedding_size": len(tensors["model.head.fc.linear2.weight" if low_rank else "model.head.fc.weight"]),
        "input_size": 112,  # of any size: its last map is averaged
    }


def _unmasked_vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    _, patches, dim = tensors["pos_embed"].shape
    depth = _count(tensors, r"blocks\.(\d+)\.")
    mlp_ratio = len(tensors["blocks.0.mlp.fc1.weight"]) // dim
    if "keypoint_linear.weight" in tensors:
        heads = len(tensors["keypoint_linear.weight"]) // (BUCKETS * depth)
        name = _name(KeypointTransformer, dim, depth, heads, mlp_ratio)
    else:  # which does not show how many heads there are
        name = _name(UnmaskedTransformer, dim, depth, {12: 8, 24: 16}[depth], mlp_ratio)
    return {
        "name": name,
        "embedding_size": len(tensors["feature.2.weight"]),
        "input_size": math.isqrt(patches) * UNMASKED_PATCH_SIZE,
    }


# A tensor that only this family has, or that others behind it have, too.
_GUESSES: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Any]]] = {
    "layer1.0.bn1.weight": _iresnet,
    "body.0.res_layer.0.weight": _ir,
    "conv_sep.layers.0.weight": _mobilefacenet,
    "mask_token": _vit,
    "patch_embed.proj.weight": _unmasked_vit,
    "model.stages.3.blocks.1.xca.temperature": _edgeface,  # of two blocks
    "model.stages.3.blocks.2.xca.temperature": _edgeface,  # of three
}


# How most names of those families' tensors begin, behind any prefix that ends in a dot or, of a section, in a slash.
_OF_A_BACKBONE = re.compile(
    r"(?:^|[./])((?:layer[1-4]|blocks)\.\d+\.|body\.\d+\.(?:res|shortcut)_layer\.|layers\.\d+\.layers\.|patch_embed\.|"
    r"model\.stages\.\d\.)"
)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers follow one another from 0 in the names that match."""
    return 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1)


def _flat_head(weight: Tensor, channels: int = STAGE_CHANNELS[-1]) -> dict[str, int]:
    """Sizes from the linear layer behind the flattened last map of ``channels``."""
    side = math.isqrt(weight.shape[1] // channels)
    return {"embedding_size": weight.shape[0], "input_size": 16 * side}


def _width(channels: Sequence[int], whole: Sequence[int], multiple: int) -> float:
    """A factor that turns ``whole`` numbers of channels, rounded to a ``multiple``, into ``channels``.

    Rounding hides it to some degree: the middle of what all of them admit; one multiple stands for anything less, too.
    """
    least = max((some - multiple / 2) / full if some > multiple else 0 for some, full in zip(channels, whole))
    most = min((some + multiple / 2) / full for some, full in zip(channels, whole))
    return (least + most) / 2


def _name(backbone: type[nn.Module], *arguments: Any, se: bool = False) -> str:
    """The first name in the table that stands for this class and these arguments."""
    for name, build in BACKBONES.items():
        if not isinstance(build, partial):  # a class that somebody added
            continue
        if build.func is backbone and build.args == arguments and build.keywords.get("se", False) == se:
            return name
    raise KeyError(arguments)
