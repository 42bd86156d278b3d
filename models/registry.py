"""The one table of backbones by name."""

import inspect
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import nn

from models.edgeface import EdgeFace
from models.ir import IR
from models.iresnet import IResNet
from models.kprpe import KeypointTransformer
from models.mobilefacenet import MobileFaceNet
from models.mobilefacenet_paper import PaperMobileFaceNet, ReLU6MobileFaceNet
from models.timm_backbone import PREFIX, is_timm, timm_constructor, timm_names
from models.unmasked_vit import UnmaskedTransformer
from models.vit import TransFace, VisionTransformer
from pipelines.common.arguments import check_arguments
from pipelines.common.errors import unknown


class Backbones(dict[str, Callable[..., nn.Module]]):
    """Constructors by name. Those of timm are in it by their prefix, without being listed: they are over a thousand."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or is_timm(name)

    def __missing__(self, name: str) -> Callable[..., nn.Module]:
        if is_timm(name):
            return timm_constructor(name)
        raise KeyError(name)


BACKBONES = Backbones(
    {
        "r18": partial(IResNet, (2, 2, 2, 2)),
        "r34": partial(IResNet, (3, 4, 6, 3)),
        "r50": partial(IResNet, (3, 4, 14, 3)),
        "r100": partial(IResNet, (3, 13, 30, 3)),
        "r200": partial(IResNet, (6, 26, 60, 6)),
        "r2060": partial(IResNet, (3, 128, 896, 3)),
        "ir_18": partial(IR, (2, 2, 2, 2)),
        "ir_34": partial(IR, (3, 4, 6, 3)),
        "ir_50": partial(IR, (3, 4, 14, 3)),
        "ir_101": partial(IR, (3, 13, 30, 3)),
        "ir_se_50": partial(IR, (3, 4, 14, 3), se=True),
        "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
        "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
        "mobilefacenet": partial(PaperMobileFaceNet),
        "mobilefacenet_relu6": partial(ReLU6MobileFaceNet),
        "vit_t": partial(VisionTransformer, 256, 12),
        "vit_t_dp005_mask0": partial(VisionTransformer, 256, 12, drop_path=0.05, mask_ratio=0.0),
        "vit_s": partial(VisionTransformer, 512, 12),
        "vit_s_dp005_mask_0": partial(VisionTransformer, 512, 12, drop_path=0.05, mask_ratio=0.0),
        "vit_b": partial(VisionTransformer, 512, 24),
        "vit_b_dp005_mask_005": partial(VisionTransformer, 512, 24, drop_path=0.05, mask_ratio=0.05),
        "vit_l": partial(VisionTransformer, 768, 24, drop_path=0.05, mask_ratio=0.05),
        "vit_l_dp005_mask_005": partial(VisionTransformer, 768, 24, drop_path=0.05, mask_ratio=0.05),
        "vit_h": partial(VisionTransformer, 1024, 48, mask_ratio=0.0),
        "vit_s_unmasked": partial(UnmaskedTransformer, 512, 12, 8, 5),
        "vit_b_unmasked": partial(UnmaskedTransformer, 512, 24, 16, 3),
        "vit_s_kprpe": partial(KeypointTransformer, 512, 12, 8, 5),
        "vit_b_kprpe": partial(KeypointTransformer, 512, 24, 16, 3),
        "edgeface_xxs": partial(EdgeFace, "edgenext_xx_small", None),
        "edgeface_xs_gamma_06": partial(EdgeFace, "edgenext_x_small", 0.6),
        "edgeface_s_gamma_05": partial(EdgeFace, "edgenext_small", 0.5),
        "edgeface_base": partial(EdgeFace, "edgenext_base", None),
        "transface_t": partial(TransFace, 256, 12),
        "transface_s": partial(TransFace, 512, 12),
        "transface_b": partial(TransFace, 512, 24),
        "transface_l": partial(TransFace, 768, 24, drop_path=0.05, mask_ratio=0.05),
    }
)


def model_names(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows and that match a pattern of the shell: ours, or timm's for ``timm/…``."""
    return timm_names(pattern) if pattern.startswith(PREFIX) else [name for name in BACKBONES if fnmatch(name, pattern)]


def create_model(name: str, embedding_size: int = 512, input_size: int = 112, **options: Any) -> nn.Module:
    """Build a backbone with fresh weights.

    Args:
        name: one of `model_names`, or ``timm/NAME`` for any image model of timm.
        embedding_size: dimensions of the embedding.
        input_size: side of the square images in pixels.
        options: what the backbone's class documents beyond that, for example ``dropout=0.4``.

    Returns:
        A module from float images (b, 3, input_size, input_size), RGB in [-1, 1], to embeddings (b, embedding_size).

    Raises:
        ValueError: for an unknown name or option, or one that is out of its range.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    known = _options(name)
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    check_arguments(BACKBONES[name], options, of=name)
    return BACKBONES[name](embedding_size=embedding_size, input_size=input_size, **options)


def model_arguments(name: str) -> set[str]:
    """The names of all arguments that `create_model` takes for a backbone; none for an unknown one."""
    return {"name", "embedding_size", "input_size", *_options(name)} if name in BACKBONES else set()


def wants_landmarks(name: str) -> bool:
    """Whether the backbone takes landmarks (b, 5, 2) beside the images; it does without, by the template's."""
    build = BACKBONES.get(name)
    return getattr(getattr(build, "func", build), "wants_landmarks", False)


def _options(name: str) -> list[str]:
    parameters = inspect.signature(BACKBONES[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
