"""Embeddings and labels → loss: margins by name, and the sharded head that evaluates any of them."""

import inspect
from collections.abc import Callable

from losses.head.centre_optimizer import CentreOptimizer
from losses.head.partial_fc import HeadOutput, PartialFC
from losses.margins.adaface import AdaFace
from losses.margins.arcface import ArcFace
from losses.margins.broadface import BroadFace
from losses.margins.combined import CombinedMargin
from losses.margins.cosface import CosFace
from losses.margins.curricularface import CurricularFace
from losses.margins.elasticface import ElasticFace
from losses.margins.gb_cosface import GBCosFace, GBMagFace
from losses.margins.magface import MagFace
from losses.margins.margin import Margin
from losses.margins.mv_softmax import MVSoftmax
from losses.margins.scf import SCF
from losses.margins.sphereface import SphereFace
from losses.margins.sphereface2 import SphereFace2
from losses.margins.sphereface_r import SphereFaceR1, SphereFaceR2
from losses.margins.uniface import UniFace
from pipelines.common.errors import UserError, unknown

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
    "uniface": UniFace,
    "sphereface2": SphereFace2,
    "sphereface_r1": SphereFaceR1,
    "sphereface_r2": SphereFaceR2,
}


def create_margin(name: str, **options: float | str | None) -> Margin:
    """A margin by name.

    Raises:
        UserError: the name is unknown (the nearest one is told), or an option is (the margin's own ones are told).
    """
    if name not in MARGINS:
        raise unknown("margin", name, MARGINS)
    constructor: Callable[..., Margin] = MARGINS[name]
    try:
        return constructor(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(constructor).parameters)
        raise UserError(f"margin {name!r}: {error}; its options are {known}") from None


__all__ = ["MARGINS", "CentreOptimizer", "HeadOutput", "Margin", "PartialFC", "create_margin"]
