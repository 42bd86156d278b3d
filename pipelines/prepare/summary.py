"""A look at a data set: figures of it, and a sheet of pictures of random identities."""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.common.files import replacing
from pipelines.common.header import Header, HeaderReader
from pipelines.common.pillow import decode
from pipelines.common.sheets import sheet
from pipelines.prepare.convert import all_labels
from pipelines.prepare.reading import Read, read_leniently
from pipelines.sources.source import Source


def summarise(source: Source, *, sample: int = 1000, seed: int = 0) -> dict[str, str]:
    """Figures by name. Those of pixels, files and sizes come from ``sample`` images drawn with ``seed``."""
    labels = all_labels(source, np.arange(len(source)))
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    figures = {
        "images": f"{len(source)}",
        "identities": f"{len(counts)} of {source.num_classes} classes",
        "images per identity": _spread(counts),
        **_histogram(counts),
    }
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
    figures["looked into"] = f"{len(chosen)} images, {len(chosen) - len(headers)} of them unreadable"
    if not headers:
        return figures
    mean, square = np.mean(pixels, axis=0)
    qualities = np.array([header.quality for header in headers if header.quality is not None])
    return figures | {
        "bytes per image": _spread(np.array(sizes)),
        "bytes in all": f"some {np.mean(sizes) * len(source) / 2**30:.3g} GiB",
        "formats": _most_common(header.suffix for header in headers),
        "width x height": _most_common("{} x {}".format(*header.size) for header in headers),
        "channels": _most_common(header.channels for header in headers),
        "JPEG quality": _spread(qualities),
        "mean of R, G, B": ", ".join(f"{value:.1f}" for value in mean),
        "deviation of R, G, B": ", ".join(f"{value:.1f}" for value in np.sqrt(square - mean**2)),
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
        tiles[-1] += [None] * (columns - len(chosen))
    return sheet(tiles)


def _decoded(image: Read) -> Image.Image | None:
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


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    least, median, greatest = np.quantile(values, [0, 0.5, 1])
    return f"{least:.0f} to {greatest:.0f}, median {median:.0f}, mean {values.mean():.1f}"


def _histogram(counts: np.ndarray) -> dict[str, str]:
    """How many identities have 1, 2 to 3, 4 to 7, … images."""
    bins = np.bincount(np.log2(counts).astype(np.int64)) if len(counts) else np.empty(0, np.int64)
    return {
        f"  {2**power}" + (f" to {2 ** (power + 1) - 1}" if power else ""): f"{people} identities"
        for power, people in enumerate(bins.tolist())
        if people
    }


def _most_common(values: Iterable[object]) -> str:
    """The five most frequent values with their shares."""
    counts = Counter(values)
    return ", ".join(f"{value} ({100 * count / counts.total():.1f} %)" for value, count in counts.most_common(5))
