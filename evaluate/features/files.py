"""Features of a data set's images from a file, of this room's own extraction or of another program."""

from pathlib import Path

import numpy as np

from evaluate.protocols.embeddings import normalised
from pipelines.common.errors import UserError, one_line

_SAMPLE = 2048  # rows that are looked at
_LEAST_LIKENESS = 0.5  # of two views of an image; networks give about 0.9, the halves of one view 0


def load_features(path: Path, images: int, views: int | None = None) -> np.ndarray:
    """Features (images, v, d) of any floating type, with v views of each image: original and mirrored, or one alone.

    ``path`` is a ``.npy`` with (images, v, d), (images, 2d) or (images, d); or a ``.npz`` with one
    such array, or with ``embs`` and ``embs_f`` (images, d), the two views as Keras_insightface saves them. A row of
    numbers does not tell its ``views`` v: where they are not given, two are taken only if the halves of the rows look
    like it. Raises ``ValueError`` for all else.
    """
    features = _array(path)
    if features.ndim not in (2, 3) or len(features) != images or features.dtype.kind != "f" or not features.size:
        raise UserError(
            f"{path} must hold floating point numbers ({images}, 2d), ({images}, 2, d) or ({images}, d), "
            f"for the images in their order; it is {features.dtype} {features.shape}"
        )
    if features.ndim == 2:
        if views is None and not _halves_are_views(features):
            raise UserError(
                f"{path} is {features.shape}: if its rows are one view of an image, say --views 1; if they are two, "
                "original and mirrored beside each other, --views 2. Their halves look like different images"
            )
        views = views or 2
        if features.shape[1] % views:
            raise UserError(f"{path} is {features.shape}: an odd number is not two views; is it --views 1?")
        features = features.reshape(images, views, -1)
    if features.shape[1] not in ((views,) if views else (1, 2)) or features.shape[2] < 2:
        raise UserError(f"{path} is {features.shape}, not {views or 'one or two'} views of each image")
    return features


def _array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if "embs" in names:
                mirrored = [loaded["embs_f"]] if "embs_f" in names and len(loaded["embs_f"]) else []
                return np.stack([loaded["embs"], *mirrored], axis=1)
            if len(names) == 1:
                return loaded[names[0]]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged header, or archive, ends in almost any class
        raise UserError(f"{path} is no sound .npy or .npz file of numbers: {one_line(error)}") from None
    raise UserError(f"{path} must hold one array, or embs and embs_f; it holds {', '.join(names) or 'none'}")


def _halves_are_views(features: np.ndarray) -> bool:
    """Whether the two halves of rows (n, 2d) point the same way, an image at a time, once their means are taken off."""
    if features.shape[1] % 2:
        return False
    chosen = np.unique(np.linspace(0, len(features) - 1, _SAMPLE).astype(np.int64))
    rows = features[chosen].astype(np.float64).reshape(len(chosen), 2, -1)
    rows = rows[np.isfinite(rows).all(axis=(1, 2))]
    if not len(rows):
        return True  # whatever they are, they are refused later
    units = normalised(rows)
    units = normalised(units - units.mean(axis=0))
    return bool((units[:, 0] * units[:, 1]).sum(axis=1).mean() >= _LEAST_LIKENESS)
