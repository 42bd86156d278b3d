"""Pooling the features of images into one unit vector a template, as the IJB protocols do."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluate.protocols.embeddings import normalised
from pipelines.common.cpu import one_thread
from pipelines.common.errors import UserError

FLIPS = ("sum", "concatenate", "none")
NORMS = ("keep", "normalise")
# What weighs an image in its template, as CVLface reports it: the length of its vector, the detector's score, or both.
# A way is a ``norm`` and whether the detector counts.
WAYS = {"norm+det": ("keep", True), "norm": ("keep", False), "det": ("normalise", True)}


@dataclass(frozen=True)
class Templates:
    """``vectors`` float64 (T, d), of length 1 (0 for a zero template), of the template ``ids`` int64 (T,), rising."""

    ids: np.ndarray
    vectors: np.ndarray

    def index(self, ids: np.ndarray) -> np.ndarray:
        """`rows_of` template ids (n,)."""
        return rows_of(ids, self.ids)


def rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows int32 (n,) of template ids (n,) among those ``known`` (T,) by an image, which rise.

    Raises ``UserError`` naming an id that has no image.
    """
    lowest, highest = int(known[0]), int(known[-1])
    if highest - lowest < 2**26:  # a table is ten times faster than a search, but ids may be anything
        table = np.full(highest - lowest + 1, -1, np.int32)
        table[known - lowest] = np.arange(len(known))
        inside = (ids >= lowest) & (ids <= highest)
        rows = table[np.where(inside, ids - lowest, 0)]
        found = inside & (rows >= 0)
    else:
        rows = np.searchsorted(known, ids).astype(np.int32).clip(max=len(known) - 1)
        found = known[rows] == ids
    if not found.all():
        missing = np.unique(ids[~found])
        raise UserError(
            f"{len(missing)} templates have no image in the template and media list, the first is {missing[0]}: "
            "do the lists belong together?"
        )
    return rows


def pool(
    features: np.ndarray,
    template: np.ndarray,
    media: np.ndarray,
    detector: np.ndarray | None = None,
    *,
    flip: str = "sum",
    norm: str = "keep",
    chunk: int = 4096,
) -> Templates:
    """Templates of features (n, v, d), original and mirrored, by template and media ids and detector scores (n,).

    An image's vector is the sum of its views (or all beside each other, or the original alone), of the length the
    network gave it or of length 1, times its detector score. A template is the sum over
    its media of each media's mean image, normalised; a media id counts inside its template only.
    """
    assert flip in FLIPS and norm in NORMS
    ids, template_of = np.unique(template, return_inverse=True)
    if media.min() < 0 or media.max() >= 2**40:
        raise UserError("media ids must lie in [0, 2^40)")
    _, media_of, images_of = np.unique(
        (template_of.astype(np.int64) << 40) | media, return_inverse=True, return_counts=True
    )
    # A sum of means is a weighted sum: an image's weight is its detector score over the number of images of its media.
    weights = (1 if detector is None else detector.astype(np.float32)) / images_of[media_of].astype(np.float32)
    totals: Tensor | None = None
    for start in range(0, len(features), chunk):
        part = slice(start, start + chunk)
        images = _combine(np.asarray(features[part], dtype=np.float32), flip, norm)
        images *= weights[part, None]
        if totals is None:
            totals = torch.zeros(len(ids), images.shape[1])
        # Rows are added one after the other in file order, so copies of a template are equal to the bit.
        with one_thread():  # several would share out each row of 512 and lose ten times what they win
            totals.index_add_(0, torch.from_numpy(template_of[part]), torch.from_numpy(images))
    assert totals is not None  # there are images
    vectors = totals.numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(f"the features of template {ids[bad[0]]} are not finite ({len(bad)} templates are affected)")
    return Templates(ids.astype(np.int64), normalised(vectors))


def template_means(values: np.ndarray, template: np.ndarray, media: np.ndarray) -> np.ndarray:
    """A number a template, float64 (T,), ids rising, of one an image (n,): the mean over media of each one's mean."""
    _, template_of = np.unique(template, return_inverse=True)
    _, first, media_of = np.unique((template_of.astype(np.int64) << 40) | media, return_index=True, return_inverse=True)
    means = np.bincount(media_of, values) / np.bincount(media_of)
    return np.bincount(template_of[first], means) / np.bincount(template_of[first])


def _combine(views: np.ndarray, flip: str, norm: str) -> np.ndarray:
    """Views (n, v, d) to one new vector an image: (n, d), or (n, v * d) concatenated."""
    if flip == "sum":
        images = views.sum(axis=1)
    elif flip == "concatenate":
        images = views.reshape(len(views), -1).copy()
    else:
        images = views[:, 0].copy()
    return normalised(images) if norm == "normalise" else images
