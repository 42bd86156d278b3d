"""One's own people at scale, by ``evaluate.folders``: 1:1 over all pairs of images, and 1:N, on made-up features.

    python -m benchmarks.own_people 10000 100000

Each number of images is measured in a process of its own.
"""

import argparse

import numpy as np
import torch

from benchmarks.results import Row, save, show
from benchmarks.stages import Clock, alone
from evaluate.own_people.faces import Faces
from evaluate.own_people.gallery import own_gallery
from evaluate.own_people.pairs import own_pairs
from evaluate.protocols.embeddings import normalised
from pipelines.common.command import at_least, run
from pipelines.common.cpu import keep_freed_memory

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


def measure(images: int) -> list[Row]:
    """1:1 of so many images, and 1:N with three fifths of those of nine people in ten enrolled."""
    keep_freed_memory()
    clock = Clock("facemill")
    faces = made_up(images)
    held = faces.vectors.nbytes
    clock("1:1", lambda: own_pairs(faces), held)
    place, known = np.arange(images) % EACH, np.arange(images) < images * 9 // 10 // EACH * EACH
    gallery, probes, unknown = (
        taken(faces, np.flatnonzero(rows)) for rows in (known & (place < 3), known & (place >= 3), ~known)
    )
    clock("1:N", lambda: own_gallery(gallery, probes, unknown), 2 * held)
    return [{"images": images} | row for row in clock.rows]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=at_least(100), nargs="+", metavar="IMAGES", help="how many, five of each person")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    rows = [row for images in args.images for row in alone(measure, images, args.threads)]
    show(rows, "One's own people, all with intervals")
    print(f"written: {save('own_people', rows)}")


if __name__ == "__main__":
    run(main)
