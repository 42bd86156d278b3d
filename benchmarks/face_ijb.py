"""Aligned faces of one's own in the layout of IJB-C's release: loose crops, landmarks, templates and lists.

Each identity with enough images is a subject: a gallery template of stills, and probes that are stills or a video.
Images lose resolution to different degrees, of which their detector's score tells, and are turned, scaled and moved
into a larger picture, from which their landmarks take them back.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.synthetic_ijb import PAIRS, write_images, write_pairs, write_templates
from pipelines.common.alignment import SIZE, TEMPLATE, sampling_matrix
from pipelines.common.errors import UserError
from pipelines.sources import open_source

LEAST = 4  # images of a subject


def write_faces(folder: Path, faces: Path, seed: int = 0) -> Path:
    """Write ``IJBC/meta`` and ``IJBC/loose_crop`` in ``folder``, of the aligned ``faces``, anything `data.train` takes.

    All pairs of a gallery template and a probe are compared.
    """
    source, rng = open_source(faces), np.random.default_rng(seed)
    images_of = _images_of(source.labels(np.arange(len(source))))
    if len(images_of) < 4:
        raise UserError(f"{faces} has {len(images_of)} identities with {LEAST} images or more; 4 are needed")
    order = rng.permutation(len(images_of))
    gallery: list[np.ndarray] = []
    probes: list[tuple[int, np.ndarray]] = []
    for subject, place in enumerate(order):
        images = rng.permutation(images_of[place])
        cut = rng.integers(1, 1 + min(3, len(images) // 2))
        gallery.append(images[:cut])
        rest = images[cut:]
        ends = np.cumsum(rng.integers(1, 6, len(rest)))
        probes += [(subject, part) for part in np.split(rest, ends[ends < len(rest)])]
    parts = [*gallery, *(part for _, part in probes)]
    subject_of = np.concatenate([np.arange(len(gallery)), [subject for subject, _ in probes]])
    ids = rng.permutation(np.arange(1, 2 * len(parts)))[: len(parts)]
    lengths = [len(part) for part in parts]
    template, image = np.repeat(np.arange(len(parts)), lengths), np.concatenate(parts)
    # Half of the probes are videos, all of whose frames are one medium; a still is a medium of its own.
    video = (np.arange(len(parts)) >= len(gallery)) & (rng.random(len(parts)) < 0.5)
    media = np.where(video[template], len(image) + template, np.arange(len(image)))
    shuffled = rng.permutation(len(image))
    template, image, media = template[shuffled], image[shuffled], media[shuffled]

    quality = 1 - 0.85 * rng.beta(1, 2, len(image))
    crops = folder / "IJBC" / "loose_crop"
    crops.mkdir(parents=True, exist_ok=True)
    landmarks = []
    for row, (number, share) in enumerate(zip(image, quality), start=1):
        (encoded,), _ = source.read(np.array([number]))
        landmarks.append(_write_crop(crops / f"{row}.jpg", encoded, share, rng))
    meta = folder / "IJBC" / "meta"
    write_images(meta, landmarks, 0.5 + 0.5 * quality, ids[template], media)
    first, second = (part.ravel() for part in np.indices((len(gallery), len(probes))))
    second = second + len(gallery)
    write_pairs(meta / PAIRS, ids[first], ids[second], subject_of[first] == subject_of[second])
    write_templates(meta, (len(gallery) // 2, len(gallery) - len(gallery) // 2), ids, subject_of, rng)
    return folder / "IJBC"


def _images_of(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each identity that has enough."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group for group in groups if len(group) >= LEAST]


def _write_crop(path: Path, encoded: np.ndarray, share: float, rng: np.random.Generator) -> str:
    """An aligned face with a ``share`` of its resolution in a larger picture; where its landmarks are, as text."""
    face = Image.open(io.BytesIO(encoded.tobytes())).convert("RGB").resize((SIZE, SIZE))
    small = max(12, round(share * SIZE))
    face = face.resize((small, small), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    turn = rng.uniform(0.8, 1.6) * np.exp(1j * np.deg2rad(rng.uniform(-20, 20)))
    size = round(1.6 * abs(turn) * SIZE)
    middle, centre = (SIZE - 1) * (0.5 + 0.5j), (size - 1) * (0.5 + 0.5j)
    shift = centre - turn * middle + size * complex(*rng.uniform(-0.05, 0.05, 2))
    matrix = tuple(sampling_matrix(turn, shift).ravel())
    crop = face.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(96,) * 3)
    crop.save(path, quality=85)
    return " ".join(f"{x:.3f}" for point in turn * TEMPLATE + shift for x in (point.real, point.imag))
