"""Sheets of image pairs, such as those a model gets most wrong, and how figures become files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluate.reporting.schema import printable
from pipelines.common.files import replacing
from pipelines.common.pillow import decode

Encoded = np.ndarray | bytes  # an image file's bytes


@dataclass(frozen=True)
class Pair:
    """What stands left and right, one or more encoded images each, and a caption below."""

    left: Sequence[Encoded]
    right: Sequence[Encoded]
    caption: str


def thumbnails(encoded: Sequence[Encoded], places: int, side: int = 112) -> np.ndarray:
    """Images beside each other, each fitted into one of the square ``places``: uint8 (side, side * places, 3).

    The place of one that cannot be decoded stays white.
    """
    row = Image.new("RGB", (side * places, side), "white")
    for place, data in enumerate(encoded):
        try:
            picture = decode(data)
        except Exception:  # Pillow raises almost any class
            continue
        picture.thumbnail((side, side))
        row.paste(picture, (place * side + (side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(row)


def pair_sheet(groups: Mapping[str, Sequence[Pair]], columns: int = 6) -> Figure:
    """One block of pairs under each title."""
    rows = [
        (title, pairs[at : at + columns]) for title, pairs in groups.items() for at in range(0, len(pairs), columns)
    ]
    places = max((len(side) for _, pairs in rows for pair in pairs for side in (pair.left, pair.right)), default=1)
    inch = min(1.0, 6.5 / (columns * places))  # side of an image
    size = columns * (2 * places * inch + 0.15), max(len(rows), 1) * (inch + 0.32) + 0.3 * len(groups)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    titled: set[str] = set()
    for axes_row, (title, pairs) in zip(grid, rows or [("", [])]):
        if title not in titled:
            axes_row[0].set_title(title, loc="left", fontsize=11, fontweight="bold")
            titled.add(title)
        for place, axes in enumerate(axes_row):
            axes.set_axis_off()
            if place < len(pairs):
                pair = pairs[place]
                left, right = thumbnails(pair.left, places), thumbnails(pair.right, places)
                gap = np.full((left.shape[0], 6, 3), 255, np.uint8)
                axes.imshow(np.concatenate([left, gap, right], axis=1))
                caption = axes.text(0.5, -0.03, printable(pair.caption), transform=axes.transAxes, parse_math=False)
                caption.set(ha="center", va="top", fontsize=8)
    return figure


def worst_sheet(worst: Mapping[str, np.ndarray], distances: np.ndarray, encoded: Sequence[Encoded]) -> Figure:
    """The pairs of a verification set that are judged worst: numbers of pairs by kind, as of ``folds.worst_pairs``.

    ``distances`` (P,); ``encoded`` (2P,), pair i is images 2i and 2i + 1.
    """
    return pair_sheet(
        {
            f"{kind.capitalize()} pairs, worst first": [
                Pair([encoded[2 * i]], [encoded[2 * i + 1]], f"distance {distances[i]:.3f}") for i in chosen
            ]
            for kind, chosen in worst.items()
        }
    )


def save_figure(figure: Figure, path: Path, dpi: float) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
