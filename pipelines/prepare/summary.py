"""A look at a data set: figures of it, and a sheet of pictures of random identities."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.common.files import replacing
from pipelines.common.header import Header, HeaderReader
from pipelines.common.pillow import decode
from pipelines.common.sheets import sheet
from pipelines.prepare.reading import ReadImage, read_leniently
from pipelines.sources.source import Source, all_labels


def summarise(source: Source, *, sample: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Figures by name, as JSON has them.

    Those of pixels (levels of 255), files and sizes (bytes) come from ``sample`` images drawn with ``seed``, and are
    left out where none of these is readable.
    """
    labels = all_labels(source, np.arange(len(source)))
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:sample])
    reader, headers = HeaderReader(), list[Header]()
    sizes, pixels = [], []
    for begin in range(0, len(chosen), 64):
        for image in read_leniently(source, chosen[begin : begin + 64]):
            try:
                header = reader.read(image.encoded)
                pixels.append(_moments(image.encoded))
            except Exception:  # Pillow's decoders raise almost any class; which images are bad is for ``check`` to say
                continue
            headers.append(header)
            sizes.append(len(image.encoded))
    figures = {
        "images": len(source),
        "identities": len(counts),
        "classes": source.num_classes,
        "images_per_identity": _spread(counts),
        "identities_by_images": _histogram(counts),
        "looked_into": len(chosen),
        "unreadable": len(chosen) - len(headers),
    }
    if not headers:
        return figures
    mean, square = np.mean(pixels, axis=0)
    qualities = np.array([header.quality for header in headers if header.quality is not None])
    return figures | {
        "bytes_per_image": _spread(np.array(sizes)),
        "bytes": float(np.mean(sizes) * len(source)),
        "formats": _shares(header.suffix for header in headers),
        "sizes": _shares("{} x {}".format(*header.size) for header in headers),
        "channels": _shares(str(header.channels) for header in headers),
        "jpeg_quality": _spread(qualities),
        "mean": mean.tolist(),
        "deviation": np.sqrt(square - mean**2).tolist(),
    }


def in_words(figures: dict[str, Any]) -> dict[str, str]:
    """What is printed of the figures that `summarise` finds."""
    words = {
        "images": f"{figures['images']}",
        "identities": f"{figures['identities']} of {figures['classes']} classes",
        "images per identity": _range(figures["images_per_identity"]),
        **{f"  {images}": f"{people} identities" for images, people in figures["identities_by_images"].items()},
        "looked into": f"{figures['looked_into']} images, {figures['unreadable']} of them unreadable",
    }
    if "bytes" not in figures:
        return words
    return words | {
        "bytes per image": _range(figures["bytes_per_image"]),
        "bytes in all": f"some {figures['bytes'] / 2**30:.3g} GiB",
        "formats": _most_common(figures["formats"]),
        "width x height": _most_common(figures["sizes"]),
        "channels": _most_common(figures["channels"]),
        "JPEG quality": _range(figures["jpeg_quality"]),
        "mean of R, G, B": ", ".join(f"{value:.1f}" for value in figures["mean"]),
        "deviation of R, G, B": ", ".join(f"{value:.1f}" for value in figures["deviation"]),
    }


def identity_sheet(source: Source, *, rows: int = 12, columns: int = 12, seed: int = 0) -> Image.Image:
    """A row of images for each of ``rows`` identities drawn with ``seed``; images that do not decode stay black."""
    labels = all_labels(source, np.arange(len(source)))
    generator = np.random.default_rng(seed)
    people = np.sort(generator.permutation(np.unique(labels[labels >= 0]))[:rows])
    tiles = []
    for person in people:
        chosen = np.sort(generator.permutation(np.flatnonzero(labels == person))[:columns])
        tiles.append([_decoded(image) for image in read_leniently(source, chosen)])
    return sheet(tiles)


def _decoded(image: ReadImage) -> Image.Image | None:
    try:
        return decode(image.encoded)
    except Exception:  # as above
        return None


def save_page(path: Path, title: str, figures: dict[str, str], picture: Image.Image) -> None:
    """Write a page of HTML that needs no other file."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in figures.items())
    title = html.escape(title)
    with replacing(path) as temporary:
        temporary.write_text(
            f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><table>{rows}</table>'
            f'<img alt="a row for each of some identities" src="data:image/png;base64,'
            f'{base64.b64encode(png.getvalue()).decode()}">\n',
            encoding="utf-8",
            errors="backslashreplace",  # the title is a path, of any bytes
        )


def _moments(encoded: np.ndarray | bytes) -> np.ndarray:
    """Means of the channels' values and of their squares, float64 (2, 3)."""
    values = np.asarray(decode(encoded), np.float64).reshape(-1, 3)
    return np.stack([values.mean(axis=0), np.square(values).mean(axis=0)])


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    names = "least", "median", "greatest"
    return {**dict(zip(names, np.quantile(values, [0, 0.5, 1]).tolist())), "mean": float(values.mean())}


def _range(spread: dict[str, float] | None) -> str:
    return "{least:.0f} to {greatest:.0f}, median {median:.0f}, mean {mean:.1f}".format(**spread) if spread else "-"


def _histogram(counts: np.ndarray) -> dict[str, int]:
    """How many identities have 1, 2 to 3, 4 to 7, … images."""
    bins = np.bincount(np.log2(counts).astype(np.int64)) if len(counts) else np.empty(0, np.int64)
    return {
        f"{2**power}" + (f" to {2 ** (power + 1) - 1}" if power else ""): people
        for power, people in enumerate(bins.tolist())
        if people
    }


def _shares(values: Iterable[str]) -> dict[str, float]:
    """The shares of the values, the most frequent first."""
    counts = Counter(values)
    return {value: count / counts.total() for value, count in counts.most_common()}


def _most_common(shares: dict[str, float]) -> str:
    """The five most frequent values with their shares."""
    return ", ".join(f"{value} ({100 * share:.1f} %)" for value, share in list(shares.items())[:5])
