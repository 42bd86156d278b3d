"""One's own people at scale, on made-up features: 1:1 over all pairs of images, and 1:N."""

from collections.abc import Callable
from typing import Any

import numpy as np

from evaluate.own_people.faces import Faces
from evaluate.own_people.gallery import own_gallery
from evaluate.own_people.pairs import own_pairs
from evaluate.protocols.embeddings import normalised

EACH = 5  # images of a person
DIMENSION = 512


def made_up(images: int) -> Faces:
    """So many images, five a person and one behind the other, with cosines of one person near .5, of two near 0."""
    rng = np.random.default_rng(0)
    person = np.arange(images) // EACH
    vectors = np.empty((images, DIMENSION))
    for start in range(0, images, 1000 * EACH):
        part = slice(start, start + 1000 * EACH)
        centres = rng.standard_normal((person[part][-1] + 1 - person[start], DIMENSION))
        noise = rng.standard_normal(vectors[part].shape)
        vectors[part] = normalised(centres[person[part] - person[start]] + noise)
    return Faces([f"{row}.jpg" for row in range(images)], [f"{one:06d}" for one in person], vectors)


def taken(faces: Faces, rows: np.ndarray) -> Faces:
    """The images of these ``rows`` (k,)."""
    return Faces([faces.paths[row] for row in rows], [faces.names[row] for row in rows], faces.vectors[rows])


def measure(images: int, clock: Callable[[str, Callable[[], Any], int], Any]) -> None:
    """Time both ways on so many images: 1:1, and 1:N with three fifths of nine people in ten enrolled."""
    faces = made_up(images)
    held = faces.vectors.nbytes
    clock("1:1", lambda: own_pairs(faces), held)
    place, known = np.arange(images) % EACH, np.arange(images) < images * 9 // 10 // EACH * EACH
    gallery, probes, unknown = (
        taken(faces, np.flatnonzero(rows)) for rows in (known & (place < 3), known & (place >= 3), ~known)
    )
    clock("1:N", lambda: own_gallery(gallery, probes, unknown), 2 * held)
