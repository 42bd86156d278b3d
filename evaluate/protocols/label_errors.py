"""Wrong labels of a data set, by the embeddings of its images: what each image's label should be.

The thresholds come from the data: what strangers' cosines are is measured between images and other labels' people.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluate.protocols.people import People, find_people, nearest_others, strangers
from evaluate.protocols.two_groups import Cut, two_groups
from pipelines.common.errors import UserError
from pipelines.common.labels import images_by_label

NOBODY = -1  # the label of an image that should be left out
_ROUNDS = 3  # in which threshold and people settle
_PEOPLE, _EACH = 8192, 8  # people whose likeness to strangers is measured, and to how many each
# Strangers are the part _SIMILAR of all people who are most alike, where _APART of their cosines lie below the
# median of those of images to their own people.
_SIMILAR, _APART = 0.1, 0.99
_SETTLED = 20_000  # images whose likeness to the people of other labels is measured
_LEAST = 3  # images that make a new person; fewer may be hard images of the label's own
# Nothing is moved or merged below these quantiles of the cosines within one person (to merge wrongly costs more), nor
# below the last of the cosines between two people.
_MOVE, _MERGE, _TWO = 0.05, 0.15, 0.998


@dataclass(frozen=True)
class LabelErrors:
    """What is found.

    Attributes:
        people: who is behind the labels.
        stray: where images part from the others of their label.
        move: the cosine from which a stray is taken for another label's person.
        merge: the cosine from which two labels' people are taken for one.
        labels: what the labels should be, int64 (n,): the old one, another, a new class (a further person of three
            images or more), or `NOBODY`.
        other: the label whose person is most like a stray, or like the group of an image that has a new label; int64
            (n,), else -1.
        cosine: to the centre of that person; float32 (n,), else NaN.
    """

    people: People
    stray: Cut
    move: float
    merge: float
    labels: np.ndarray
    other: np.ndarray
    cosine: np.ndarray


def check_comparable(labels: np.ndarray) -> None:
    """Raise ``ValueError`` where labels (n,) leave nothing to compare."""
    counts = np.bincount(labels[labels >= 0], minlength=1)
    if (counts > 0).sum() < 2 or counts.max() < 2:
        raise UserError("labels are judged by one another: two identities, and one of two images, are the least")


def find_label_errors(
    embeddings: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    stray: float | None = None,
    move: float | None = None,
    merge: float | None = None,
) -> LabelErrors:
    """Wrong labels among int64 (n,), below ``classes`` or -1, of images with unit embeddings float32 (n, d).

    An image strays if it is less like the other images of its label than ``stray``. Strays, and further people of a
    label, that are like another label's person by ``move`` or more are moved there; other strays should be left out.
    The people of two labels that are alike by ``merge`` or more are one.

    Thresholds that are not given are found: ``stray`` by `two_groups`; the others lie above nearly all cosines to the
    second nearest person of another label (the nearest may be the same one), and above the lowest cosines of images to
    the others of their group (``move``), of one half of a group to the other (``merge``).
    """
    check_comparable(labels)
    generator = np.random.default_rng(0)
    people, cut = _settled(embeddings, labels, stray, generator)
    first = np.flatnonzero(people.first)
    centres, of = people.centres[first], people.labels[first]

    # What has one label by itself: the groups, and then the strays.
    strays = np.flatnonzero((people.group < 0) & (labels >= 0))
    unit = people.group.copy()
    unit[strays] = len(people.labels) + np.arange(len(strays))
    vectors = np.concatenate([people.centres, embeddings[strays]])
    before = np.concatenate([people.labels, labels[strays]])
    cosine, nearest, second = nearest_others(vectors, before, centres, of)

    if merge is None:
        merge = _threshold(_halves(embeddings, people), _MERGE, second[first])
    if move is None:
        settled = generator.permutation(np.flatnonzero(people.group >= 0))[:_SETTLED]
        _, _, apart = nearest_others(embeddings[settled], labels[settled], centres, of)
        move = _threshold(people.likeness[settled], _MOVE, apart)
    new = np.where(labels >= 0, _new_labels(people, cosine, nearest, move, merge, classes)[unit], labels)
    changed = new != labels
    return LabelErrors(
        people,
        cut,
        move,
        merge,
        new,
        np.where(changed, of[nearest[unit]], -1),
        np.where(changed, cosine[unit], np.nan),
    )


def _settled(
    embeddings: np.ndarray, labels: np.ndarray, stray: float | None, generator: np.random.Generator
) -> tuple[People, Cut]:
    """Who is behind the labels, and where images part from the others of theirs: each is found by the other."""
    people = find_people(embeddings, labels, -1.0 if stray is None else stray)
    for _ in range(_ROUNDS):
        likeness = people.likeness[~np.isnan(people.likeness)]
        if not len(likeness):
            raise UserError("the features tell no faces apart: they are all alike, or too large for float32")
        cut = two_groups(likeness, _strangers(embeddings, people, likeness, generator), stray)
        people = find_people(embeddings, labels, cut.threshold)
    return people, cut


def _new_labels(
    people: People, cosine: np.ndarray, nearest: np.ndarray, move: float, merge: float, classes: int
) -> np.ndarray:
    """The labels int64 (u,) that the groups of ``people`` and then the strays should have.

    Args:
        cosine, nearest: to which of the people who are the first of their label each is most like, (u,), and how much.
        move, merge: as of `LabelErrors`.
        classes: the first label that is new.
    """
    first = np.flatnonzero(people.first)
    of = people.labels[first]
    sizes = np.bincount(people.group[people.group >= 0], minlength=len(people.labels))
    merged = _united(np.where(cosine[first] >= merge, nearest[first], -1), sizes[first])
    new = np.full(len(cosine), NOBODY)
    new[first] = of[merged]
    others = np.setdiff1d(np.arange(len(new)), first)
    moved = others[cosine[others] >= move]
    new[moved] = of[merged[nearest[moved]]]
    further = others[others < len(sizes)]
    further = further[(new[further] == NOBODY) & (sizes[further] >= _LEAST)]
    new[further] = classes + np.arange(len(further))
    return new


def _strangers(
    embeddings: np.ndarray, people: People, likeness: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Cosines of images to people who they might be taken for: float32 (k,).

    Wrong labels are mostly of people of the same sex, age and descent, whose scores are higher than those of people at
    random (Grother et al., "Face Recognition Vendor Test Part 3: Demographic Effects", NIST IR 8280, 2019): strangers
    are the tenth of all people who are most alike. But a network that hardly tells these from the same person finds
    those alike whom it confuses; then they are all people.
    """
    similar = strangers(embeddings, people, generator, most=_PEOPLE, each=_EACH, part=_SIMILAR)
    if np.quantile(similar, _APART) < np.median(likeness):
        return similar
    return strangers(embeddings, people, generator, most=_PEOPLE, each=_EACH, part=1.0)


def _halves(embeddings: np.ndarray, people: People) -> np.ndarray:
    """Cosines between the means of two halves of the people who are the first of their label: float32 (k,)."""
    cosines = []
    for images in images_by_label(people.group):
        if len(images) > 1 and people.first[people.group[images[0]]]:
            one, other = embeddings[images[::2]].sum(axis=0), embeddings[images[1::2]].sum(axis=0)
            cosines.append(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
    return np.array(cosines, np.float32)


def _united(same: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Who is one: of each of (p,) people the largest who is the same by a chain of ``same`` (p,), -1 for none."""
    where = same >= 0
    links = coo_array((np.ones(where.sum()), (np.flatnonzero(where), same[where])), shape=(len(same), len(same)))
    _, component = connected_components(links, directed=False)
    largest = np.zeros(component.max() + 1, np.int64)
    order = np.argsort(sizes, kind="stable")
    largest[component[order]] = order  # the last one stays
    return largest[component]


def _threshold(one: np.ndarray, low: float, two: np.ndarray) -> float:
    """The cosine from which two are one: above the ``low`` part of what is one, and nearly all of what is two."""
    one, two = one[np.isfinite(one)], two[np.isfinite(two)]
    return max(float(np.quantile(some, part)) if len(some) else 1.0 for some, part in ((one, low), (two, _TWO)))
