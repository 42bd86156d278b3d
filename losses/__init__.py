"""Embeddings and labels → loss: margins by name, and the sharded head that evaluates any of them."""

import inspect

from losses.angular import ArcFace, CombinedMargin, CosFace, SphereFace
from losses.broadface import BroadFace
from losses.centre_optimizer import CentreOptimizer
from losses.elastic import ElasticFace
from losses.gb_cosface import GBCosFace, GBMagFace
from losses.hard_negative import CurricularFace, MVSoftmax
from losses.margin import Margin
from losses.partial_fc import HeadOutput, PartialFC
from losses.quality import AdaFace, MagFace
from losses.scf import SCF

MARGINS: dict[str, type[Margin]] = {
    "arcface": ArcFace,
    "cosface": CosFace,
    "combined": CombinedMargin,
    "sphereface": SphereFace,
    "curricularface": CurricularFace,
    "mv_softmax": MVSoftmax,
    "magface": MagFace,
    "adaface": AdaFace,
    "elasticface": ElasticFace,
    "gb_cosface": GBCosFace,
    "gb_magface": GBMagFace,
    "broadface": BroadFace,
    "scf": SCF,
}


def create_margin(name: str, **options: float | str | None) -> Margin:
    """A margin by name; options it does not know are named, with those it does."""
    if name not in MARGINS:
        raise ValueError(f"unknown margin {name!r}; known: {', '.join(MARGINS)}")
    try:
        return MARGINS[name](**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(MARGINS[name]).parameters)
        raise ValueError(f"margin {name!r}: {error}; its options are {known}") from None


__all__ = ["MARGINS", "CentreOptimizer", "HeadOutput", "Margin", "PartialFC", "create_margin"]
