"""What protocols ask of embeddings before they measure anything: a row an image, finite numbers, one length."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from pipelines.common.errors import UserError


def one_row_an_image(output: object, images: int) -> Tensor:
    """A network's output for a batch as embeddings float32 (images, d), d > 1; (images, d, 1, 1) becomes (images, d).

    Raises ``ValueError`` for anything else, such as a detector's boxes.
    """
    if isinstance(output, Tensor) and output.ndim > 2 and output.shape[2:].numel() == 1:
        output = output.flatten(1)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != images or output.shape[1] < 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"the network is none that embeds faces: for {images} images it gives {found}, not one row of numbers each"
        )
    return output.float()


def finite(values: np.ndarray, what: str, name: Callable[[int], str] = "image {}".format) -> np.ndarray:
    """``values`` (n, ...) themselves if all are finite, else a ``ValueError`` that counts and names the bad rows.

    ``what`` says whose the values are, ``name`` what a row is called.
    """
    sound = np.ones(len(values), bool)
    for start in range(0, len(values), 4096):  # values may be the map of a large file
        part = slice(start, start + 4096)
        sound[part] = np.isfinite(values[part]).reshape(len(sound[part]), -1).all(axis=1)
    if not sound.all():
        bad = np.flatnonzero(~sound)
        raise UserError(f"{what} are not finite for {len(bad)} of {len(values)} images, the first is {name(bad[0])}")
    return values


def normalised(features: np.ndarray) -> np.ndarray:
    """Vectors (…, d) of length 1; zero vectors stay."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(norms == 0, 1, norms)


def mean_norms(features: np.ndarray) -> np.ndarray:
    """The mean length of each image's views, float64 (n,), of features (n, v, d): a quality, as MagFace has it.

    Raises ``UserError`` where all are equal: a network that normalises its embeddings tells nothing by their length.
    """
    found = np.empty(len(features))
    for start in range(0, len(features), 4096):  # features may be the map of a large file
        part = slice(start, start + 4096)
        found[part] = np.linalg.norm(np.asarray(features[part], np.float32), axis=2).mean(axis=1)
    if np.ptp(found) <= 1e-3 * found.max():
        raise UserError(
            f"all embeddings have the length {found.max():.4g}, so it is no quality: the network normalises them"
        )
    return found
