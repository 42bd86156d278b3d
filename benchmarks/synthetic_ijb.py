"""A synthetic release in the shape of IJB-C: features and lists, no images; or lists and images of one's own faces.

``python -m benchmarks.synthetic_ijb --output DIR --scale 0.05`` gives people something to run ``evaluate.ijb`` on: all
sizes grow with ``scale``. With ``--faces``, aligned faces of any data set become loose crops with landmarks
(`benchmarks.face_ijb`), so that a network can be run from JPEG to figures.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.command import run

# IJB-C: images, subjects of gallery 1 and 2, probes, genuine and impostor pairs.
IMAGES, GALLERIES, PROBES, GENUINE, IMPOSTOR = 469_375, (1_772, 1_759), 19_593, 19_557, 15_638_932
PAIRS = "ijbc_template_pair_label.txt"
LANDMARKS = "38.295 51.696 73.532 51.501 56.025 71.737 41.549 92.366 70.730 92.204"


@dataclass(frozen=True)
class Sizes:
    images: int
    galleries: tuple[int, int]
    probes: int
    genuine: int
    impostor: int

    @classmethod
    def at(cls, scale: float) -> "Sizes":
        """IJB-C's sizes times ``scale``."""
        first, second = (max(2, round(size * scale)) for size in GALLERIES)
        subjects = first + second
        probes = max(2 * subjects, round(PROBES * scale))
        images = max(3 * (subjects + probes), round(IMAGES * scale))
        impostor = min(round(IMPOSTOR * scale), (subjects - 1) * probes // 2)
        return cls(images, (first, second), probes, min(max(10, round(GENUINE * scale)), probes), impostor)


def write_release(folder: Path, scale: float, seed: int = 0, dimension: int = 512) -> Path:
    """Write ``IJBC/meta`` and ``features.npy`` float32 (n, 2 * dimension) in ``folder``; the path of the features.

    Template ids have gaps, the rows of a template are scattered, and media ids recur in other templates.
    """
    sizes, rng = Sizes.at(scale), np.random.default_rng(seed)
    subjects = sum(sizes.galleries)
    templates = subjects + sizes.probes
    subject_of = np.concatenate([np.arange(subjects), np.arange(sizes.probes) % subjects])
    ids = rng.permutation(np.arange(1, 2 * templates))[:templates]
    template = np.concatenate([np.arange(templates), rng.integers(0, templates, sizes.images - templates)])
    rng.shuffle(template)
    media = rng.integers(1, 5, sizes.images)  # of a template
    detector = np.round(1 - 0.5 * rng.beta(0.3, 6, sizes.images), 3)

    meta = folder / "IJBC" / "meta"
    write_images(meta, [LANDMARKS] * sizes.images, detector, ids[template], media)
    _write_pairs(meta / PAIRS, sizes, subject_of, ids, rng)
    write_templates(meta, sizes.galleries, ids, subject_of, rng)

    features = folder / "features.npy"
    _write_features(features, subject_of[template], template, dimension, rng)
    return features


def write_images(
    meta: Path, landmarks: Sequence[str], detector: np.ndarray, template: np.ndarray, media: np.ndarray
) -> None:
    """The two lists of n images, 1.jpg …: ten numbers as text and a score each; template and media ids (n,)."""
    meta.mkdir(parents=True, exist_ok=True)
    names = [f"{row}.jpg" for row in range(1, len(landmarks) + 1)]
    lines = (f"{name} {points} {score:.3f}" for name, points, score in zip(names, landmarks, detector))
    _write(meta / "ijbc_name_5pts_score.txt", lines)
    _write(meta / "ijbc_face_tid_mid.txt", (f"{n} {t} {m}" for n, t, m in zip(names, template, media)))


def write_templates(
    meta: Path, galleries: tuple[int, int], ids: np.ndarray, subject_of: np.ndarray, rng: np.random.Generator
) -> None:
    """The galleries and probes of T templates, ``ids`` and subjects (T,), that lie in this order."""
    heading = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID"
    bounds = np.cumsum([0, *galleries, len(ids) - sum(galleries)])
    for name, start, end in zip(("gallery_G1", "gallery_G2", "probe_mixed"), bounds, bounds[1:]):
        rows = rng.permutation(np.arange(start, end))
        lines = (f"{ids[row]},{subject_of[row] + 1},{ids[row]}.jpg,0" for row in rows)
        _write(meta / f"ijbc_1N_{name}.csv", [heading, *lines])


def write_pairs(path: Path, first: np.ndarray, second: np.ndarray, same: np.ndarray) -> None:
    """Template ids (P,), (P,) and whether they show one person (P,)."""
    with path.open("w") as file:
        for part in np.array_split(np.arange(len(first)), max(1, len(first) // 500_000)):
            rows = np.stack([first[part], second[part], same[part]], 1).tolist()
            file.writelines(f"{a} {b} {c}\n" for a, b, c in rows)


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_pairs(path: Path, sizes: Sizes, subject_of: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> None:
    """Genuine and impostor pairs of a gallery template and a probe, in random order."""
    subjects = sum(sizes.galleries)
    probe = rng.choice(sizes.probes, sizes.genuine, replace=False) + subjects
    cells = rng.integers(0, subjects * sizes.probes, 2 * sizes.impostor)
    gallery, other = cells // sizes.probes, cells % sizes.probes + subjects
    stranger = np.flatnonzero(subject_of[other] != gallery)[: sizes.impostor]
    first = np.concatenate([subject_of[probe], gallery[stranger]])
    second = np.concatenate([probe, other[stranger]])
    same = np.arange(len(first)) < sizes.genuine
    order = rng.permutation(len(first))
    write_pairs(path, ids[first[order]], ids[second[order]], same[order])


def _write_features(
    path: Path, subject: np.ndarray, template: np.ndarray, dimension: int, rng: np.random.Generator
) -> None:
    """A centre a subject, a shift a template, noise an image and a little for its mirror; the length tells quality."""
    centres = rng.standard_normal((subject.max() + 1, dimension), np.float32)
    shifts = rng.standard_normal((template.max() + 1, dimension), np.float32)
    features = np.lib.format.open_memmap(path, "w+", np.float32, (len(subject), 2 * dimension))
    for start in range(0, len(subject), 8192):
        part = slice(start, start + 8192)
        rows = len(subject[part])
        quality = rng.beta(3, 1.5, (rows, 1)).astype(np.float32)
        noise = rng.standard_normal((rows, dimension), np.float32)
        original = quality * centres[subject[part]] + 1.1 * (1 - quality) * shifts[template[part]] + 0.8 * noise
        mirror = original + 0.3 * rng.standard_normal((rows, dimension), np.float32)
        features[part, :dimension] = original
        features[part, dimension:] = mirror
    features.flush()


def main() -> None:
    from benchmarks.face_ijb import write_faces  # which builds on this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for IJBC/, and features.npy without --faces")
    parser.add_argument("--scale", type=float, default=0.05, help="1 is IJB-C's size: 2 GB of features")
    parser.add_argument("--faces", type=Path, help="aligned faces, anything that data.train takes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.faces:
        write_faces(args.output, args.faces, args.seed)
        source = "--checkpoint MODEL"
    else:
        source = f"--features {write_release(args.output, args.scale, args.seed)}"
    print(f"python -m evaluate.ijb --data {args.output} {source} --output {args.output / 'results'}")


if __name__ == "__main__":
    run(main)
