"""Verification pairs of a data set: drawn with a seed, or listed in LFW's format; and splits by identity."""

import math
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import is_image
from pipelines.common.image_files import ListedImages
from pipelines.common.labels import images_by_label
from pipelines.common.log import get_logger
from pipelines.sources.source import Source, all_labels, labels_by_name

logger = get_logger(__name__)

FOLDS = 10
_ATTEMPTS = 50  # draws for each pair that is still missing


def split_identities(source: Source, held_out: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 of the images of all but ``held_out`` identities, and of those of ``held_out`` drawn ones."""
    labels = all_labels(source, np.arange(len(source)))
    present = np.unique(labels[labels >= 0])
    if not 0 < held_out < len(present):
        raise UserError(f"of {len(present)} identities {held_out} cannot be held out")
    chosen = np.random.default_rng(seed).permutation(present)[:held_out]
    out = np.isin(labels, chosen)
    return np.flatnonzero(~out & (labels >= 0)), np.flatnonzero(out)


def draw_pairs(labels: np.ndarray, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` different pairs of images in ten folds, half of each fold genuine, no identity in two folds.

    ``labels`` int64 (n,). Returns indices int64 (count, 2), and whether they show the same person, bool (count,). Every
    identity of a fold is equally likely, however many images it has.
    """
    if count < 2 * FOLDS or count % (2 * FOLDS):
        raise UserError(f"{count} pairs do not make {FOLDS} folds with equal halves: give 20, 40, 60, …")
    people = images_by_label(labels)
    generator = np.random.default_rng(seed)
    # Dealt out in turns by the number of images, so that each fold gets its share of those with genuine pairs.
    dealt = sorted(generator.permutation(len(people)).tolist(), key=lambda person: -len(people[person]))
    pairs = []
    for fold in range(FOLDS):
        members = [people[person] for person in dealt[fold::FOLDS]]
        for genuine in (True, False):
            pairs += _draw(members, count // FOLDS // 2, genuine, generator)
    same = np.tile(np.repeat([True, False], count // FOLDS // 2), FOLDS)
    return np.array(pairs), same


def _draw(people: list[np.ndarray], count: int, genuine: bool, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Different pairs within one person or of two."""
    candidates = [images for images in people if len(images) > 1] if genuine else people
    needed = 1 if genuine else 2  # people of a pair
    pairs: dict[tuple[int, int], None] = {}
    for _ in range(_ATTEMPTS * count):
        if len(pairs) == count or len(candidates) < needed:
            break
        pair: np.ndarray | list[np.int64]
        if genuine:
            images = candidates[generator.integers(len(candidates))]
            pair = generator.choice(images, 2, replace=False)
        else:
            both = generator.choice(len(candidates), 2, replace=False)
            pair = [generator.choice(candidates[person]) for person in both]
        pairs[min(pair).item(), max(pair).item()] = None
    if len(pairs) < count:
        kind = "genuine" if genuine else "impostor"
        raise UserError(
            f"a fold of {len(people)} identities has fewer than {count} {kind} pairs (or next to none beyond them):"
            " ask for fewer pairs, or hold out more identities"
        )
    return list(pairs)


def read_pairs(path: str | Path) -> tuple[list[tuple[tuple[str, int], tuple[str, int]]], np.ndarray]:
    """The pairs of an LFW pairs file: ((name, number), (name, number)) with numbers from 1, and the same? (p,) bool.

    Lines ``name a b`` are genuine, ``name a other b`` impostors; the fields are separated by tabs or commas (or blanks,
    where no name has one). The first line may be a heading, or say how many there are: of each kind, or folds and how
    many of each kind in a fold. A warning names a heading, and a count that is wrong.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    rows = [(number, fields) for number, line in enumerate(lines, 1) if (fields := _fields(line))]
    heading = rows[0][1] if rows and _is_heading(rows[0][1]) else None
    pairs, same = [], []
    for number, fields in rows[heading is not None :]:
        genuine = len(fields) == 3
        name, first, *other, second = fields if len(fields) in (3, 4) else ["", "", ""]
        if not first.isdecimal() or not second.isdecimal():
            line = lines[number - 1][:80]
            raise UserError(f"{path}, line {number} is neither 'name a b' nor 'name a other b': '{line}'")
        pairs.append(((name, int(first)), (name if genuine else other[0], int(second))))
        same.append(genuine)
    if not pairs:
        raise UserError(f"{path} lists no pairs")
    if heading and not heading[0].isdecimal():
        logger.warning("%s: the first line is taken for a heading: '%s'", path, " ".join(heading)[:80])
    elif heading and len(pairs) not in (count := math.prod(map(int, heading)), 2 * count):
        logger.warning(
            "%s: the first line announces %d pairs of each kind, there are %d in all", path, count, len(pairs)
        )
    return pairs, np.array(same)


def _fields(line: str) -> list[str]:
    """The fields of a line; none where it is empty. Tables may have empty ones at the end."""
    separator = next((separator for separator in "\t," if separator in line), None)
    fields = [field.strip() for field in line.split(separator)]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _is_heading(fields: list[str]) -> bool:
    """Whether the first line is not a pair but one or two counts, or names of columns."""
    numbers = sum(field.isdecimal() for field in fields)
    return numbers == 0 or numbers == len(fields) <= 2


def find_images(source: Source, wanted: list[tuple[str, int]]) -> list[np.ndarray]:
    """The encoded images (name, number) of a source: the number-th image of that identity, counted from 1."""
    labels = all_labels(source, np.arange(len(source)))
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    numbers = labels_by_name(source)
    indices = []
    for name, number in wanted:
        if name not in numbers:
            raise UserError(f"there is no identity '{name}' in the data set")
        first, last = np.searchsorted(ordered, [numbers[name], numbers[name] + 1])
        if not 1 <= number <= last - first:
            raise UserError(f"'{name}' has {last - first} images, image {number} is asked for")
        indices.append(order[first + number - 1])
    return source.read(np.array(indices))[0]


def find_files(root: Path, wanted: list[tuple[str, int]]) -> list[bytes]:
    """The encoded images (name, number) of a folder in LFW's layout, ``name/name_0001.jpg``, of any suffix."""
    files: dict[str, ListedImages] = {}
    images = []
    for name, number in wanted:
        if name not in files:
            found = (root / name).iterdir() if (root / name).is_dir() else ()
            files[name] = ListedImages(path for path in found if is_image(path.name))
        stem = f"{name}_{number:04d}"
        path = files[name].find(stem)
        if path is None:
            raise FileNotFoundError(f"image {number} of '{name}' is listed, and there is no {root / name / stem}.jpg")
        images.append(path.read_bytes())
    return images
