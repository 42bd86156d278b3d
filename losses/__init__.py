"""Embeddings and labels → loss: margins by name, and the sharded head that evaluates any of them."""

from losses.angular import ArcFace, CombinedMargin, CosFace, SphereFace
from losses.centre_optimizer import CentreOptimizer
from losses.margin import Margin
from losses.partial_fc import HeadOutput, PartialFC

MARGINS: dict[str, type[Margin]] = {
    "arcface": ArcFace,
    "cosface": CosFace,
    "combined": CombinedMargin,
    "sphereface": SphereFace,
}


def create_margin(name: str, **options: float | str | None) -> Margin:
    """A margin by name; options it does not know are named, with those it does."""
    if name not in MARGINS:
        raise ValueError(f"unknown margin {name!r}; known: {', '.join(MARGINS)}")
    try:
        return MARGINS[name](**options)
    except TypeError as error:
        raise ValueError(f"margin {name!r}: {error}") from None


__all__ = ["MARGINS", "CentreOptimizer", "HeadOutput", "Margin", "PartialFC", "create_margin"]
