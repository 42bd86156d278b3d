"""The people behind each label of a data set: which images under a label show one person, and which people are alike.

Labels of photographs that were gathered by name are wrong in three ways: single images show somebody else, several
people share a name, and one person has two names. As Jin et al. ("A Community Detection Approach to Cleaning Extremely
Large Face Database", 2018) the images under a label are parted into groups that are alike, and what lies in no group is
compared with the other labels' groups.
"""

from dataclasses import dataclass

import numpy as np

from evaluate.protocols.scores import blocks
from pipelines.common.labels import images_by_label

_ROUNDS = 10  # after which a group that still changes stays as it is
_CELLS = 1 << 24  # of a block of similarities


@dataclass(frozen=True)
class People:
    """Groups of images, those of a label behind one another, the one around its most typical image first.

    Attributes:
        group: of each image, int64 (n,); -1 for one without a label or alone among those of its label.
        likeness: each image's cosine to the centre of its label's first group without itself, float32 (n,); NaN where
            there is no other image.
        centres: unit vectors float32 (g, d).
        labels: of the groups, int64 (g,).
        first: whether a group is its label's first, bool (g,).
    """

    group: np.ndarray
    likeness: np.ndarray
    centres: np.ndarray
    labels: np.ndarray
    first: np.ndarray


def find_people(embeddings: np.ndarray, labels: np.ndarray, threshold: float) -> People:
    """Part the images of each label, unit vectors (n, d) with int64 (n,), into people.

    A group begins with the image that is nearest to all others, and holds those whose cosine to the mean of the others
    of the group is ``threshold`` or more. Those left over may make further groups in the same way, of two images or
    more; the first group may be a single image.
    """
    group = np.full(len(labels), -1, np.int64)
    likeness = np.full(len(labels), np.nan, np.float32)
    centres: list[np.ndarray] = []
    of: list[int] = []
    first: list[bool] = []
    for images in images_by_label(labels):
        left, begun = images, False
        while len(left):
            x = embeddings[left]
            inside = _group(x, threshold)
            if begun and inside.sum() < 2:
                break
            if not begun:
                likeness[images] = _likeness(x, inside)
            group[left[inside]] = len(centres)
            centre = x[inside].sum(axis=0)
            centres.append(centre / max(np.linalg.norm(centre), 1e-12))
            of.append(labels[images[0]])
            first.append(not begun)
            left, begun = left[~inside], True
    return People(group, likeness, np.array(centres, np.float32), np.array(of, np.int64), np.array(first, bool))


def _group(x: np.ndarray, threshold: float) -> np.ndarray:
    """Which of the images (k, d) belong to the person of the image that is nearest to all others: bool (k,)."""
    middle = int(np.argmax(x @ x.sum(axis=0)))
    inside = x @ x[middle] >= threshold
    inside[middle] = True
    for _ in range(_ROUNDS):
        now = _likeness(x, inside) >= threshold
        if not now.any() or (now == inside).all():
            break
        inside = now
    return inside


def _likeness(x: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cosines float32 (k,) of unit vectors (k, d) to the mean of those ``inside``, without themselves; NaN if alone."""
    others = x[inside].sum(axis=0) - x * inside[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(inside.sum() > inside, (x * others).sum(axis=1) / np.linalg.norm(others, axis=1), np.nan)


def nearest_others(
    vectors: np.ndarray, labels: np.ndarray, centres: np.ndarray, centre_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each unit vector (n, d), the centre (c, d) that it is most like, of other labels than its own.

    The labels of the centres differ. Returns the cosines float32 (n,), which centres, int64 (n,), and the cosines to
    the next best; -inf where there is none.
    """
    best = np.full(len(vectors), -np.inf, np.float32)
    which = np.zeros(len(vectors), np.int64)
    second = best.copy()
    for part, scores in blocks(vectors, centres, rows=max(1, _CELLS // len(centres))):
        rows = np.arange(len(scores))
        scores[labels[part, None] == centre_labels] = -np.inf
        which[part] = scores.argmax(axis=1)
        best[part] = scores[rows, which[part]]
        scores[rows, which[part]] = -np.inf
        second[part] = scores.max(axis=1)
    return best, which, second


def strangers(
    embeddings: np.ndarray, people: People, generator: np.random.Generator, *, most: int, each: int, part: float
) -> np.ndarray:
    """Cosines float32 (k,) of images to the centres of other labels' people.

    Of ``most`` people at random, ``each`` images of those of the ``part`` of all people who are most like them.
    """
    order = np.argsort(people.group, kind="stable")
    starts = np.searchsorted(people.group[order], np.arange(len(people.labels) + 1))
    groups = generator.permutation(np.flatnonzero(people.first))[:most]
    alike = max(1, round(part * len(people.labels)))
    cosines = []
    for rows, scores in blocks(people.centres[groups], people.centres, rows=max(1, _CELLS // len(people.labels))):
        own = people.labels[groups[rows], None] == people.labels
        scores[own] = -np.inf
        nearest = np.argpartition(-scores, min(alike, scores.shape[1]) - 1, axis=1)[:, :alike]
        others = np.take_along_axis(nearest, generator.integers(0, nearest.shape[1], (len(nearest), each)), axis=1)
        images = order[generator.integers(starts[others], starts[others + 1])]
        found = np.einsum("ged,gd->ge", embeddings[images], people.centres[groups[rows]])
        cosines.append(found[~np.take_along_axis(own, others, axis=1)])
    return np.concatenate(cosines)
