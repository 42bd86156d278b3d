"""Several data sets to train on together: how often each comes, which of its images count, who is the same person.

Files that say so are text; empty lines and lines that begin with # are remarks. A list of ``images`` has the number of
an image a line, as `Source.read` takes it, or is a .npy file of them; a list of ``identities`` has a name a line, as
`Source.identity` gives it. A file of ``labels`` has lines ``name<TAB>class``: who is called so here is of that class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names, load_array
from pipelines.sources import as_one, open_source
from pipelines.sources.changes import ChangedSource
from pipelines.sources.selected import SelectedSource
from pipelines.sources.source import Source, all_labels, labels_by_name

APART, SHARED = "apart", "shared"


@dataclass(frozen=True)
class DataSet:
    """A data set among others.

    Attributes:
        path: as `open_source` takes it.
        weight: how often an image of it comes in an epoch.
        labels: ``apart``: its identities are nobody's of another set. ``shared``: they are the classes of their names,
            which all sets with shared labels have in common. A file: those that it names are the classes that it says,
            in that same space; the others stay apart.
        images: the images that count; None for all.
        identities: the identities whose images count, by the set's own labels; None for all.
    """

    path: str
    weight: float = 1.0
    labels: str = APART
    images: str | None = None
    identities: str | None = None


@dataclass(frozen=True)
class _Part:
    """A set in its place: its images and classes begin with these numbers; ``chosen`` of its images, None for all."""

    of: DataSet
    source: Source
    first_image: int
    first_class: int
    chosen: np.ndarray | None

    @property
    def images(self) -> np.ndarray:
        return self.first_image + (np.arange(len(self.source)) if self.chosen is None else self.chosen)

    @property
    def classes(self) -> slice:
        return slice(self.first_class, self.first_class + self.source.num_classes)


def open_collection(sets: Sequence[DataSet], changes: Sequence[Path] = ()) -> tuple[Source, list[int]]:
    """The data sets as one, and how many images of each count. Classes follow one another as the sets do.

    A class that sets share has the place of its first. Of a set of which a part of the images was named, identities
    without any of them are no classes. ``changes`` of labels are made before, to whole sets (`open_sources`); images
    that they leave out do not count.
    """
    names = distinct_names([part.path for part in sets])
    sources = [open_source(part.path) for part in sets]
    source = as_one(dict(zip(names, sources)), changes)
    left_out = source.left_out if isinstance(source, ChangedSource) else np.empty(0, np.int64)
    parts, images, classes = [], 0, 0
    for of, own in zip(sets, sources):
        parts.append(_Part(of, own, images, classes, _chosen(of, own)))
        images, classes = images + len(own), classes + own.num_classes
    all_count = not len(left_out) and all(part.chosen is None for part in parts)
    if all_count and all(of.labels == APART for of in sets):
        return source, list(map(len, sources))
    if all_count:
        counting, sizes = None, list(map(len, sources))
    else:
        pieces = [np.setdiff1d(part.images, left_out, assume_unique=True) for part in parts]
        counting, sizes = np.concatenate(pieces), list(map(len, pieces))
        for of, size in zip(sets, sizes):
            if not size:
                raise UserError(f"no image of {of.path} is left")
    return SelectedSource(source, counting, _numbers(source, parts)), sizes


def _numbers(source: Source, parts: Sequence[_Part]) -> np.ndarray:
    """The new numbers of all classes of ``source``, int64 (c,), -1 for those that are none any more."""
    same = np.arange(source.num_classes)  # the first class that is the same
    shared: dict[str, int] = {}
    for part in parts:
        for label, name in _shared_names(part.of, part.source):
            same[part.first_class + label] = shared.setdefault(name, part.first_class + label)
    kept = np.ones(len(same), bool)
    for part in parts:
        kept[part.classes] = part.chosen is None
    for part in parts:
        if part.chosen is not None:
            labels = all_labels(source, part.images)
            kept[labels[(labels >= 0) & (labels < len(kept))]] = True
    present = np.unique(same[kept])
    numbers = np.full(len(same), -1, np.int64)
    numbers[present] = np.arange(len(present))
    return np.where(kept, numbers[same], -1)


def _shared_names(of: DataSet, source: Source) -> Iterator[tuple[int, str]]:
    """The classes of a set that are not its own alone, and what they are called in all that share them."""
    if of.labels == APART:
        return
    if of.labels == SHARED:
        yield from ((label, source.identity(label)) for label in range(source.num_classes))
        return
    numbers = labels_by_name(source)
    found: dict[str, str] = {}
    for number, line in _lines(of.labels):
        name, tab, wanted = line.partition("\t")
        if not tab or not wanted.strip():
            raise UserError(f"{of.labels}, line {number} is not 'name<TAB>class': '{line[:80]}'")
        if name not in numbers:
            raise UserError(f"{of.labels}, line {number}: {of.path} has no identity '{name}'")
        if found.setdefault(name, wanted.strip()) != wanted.strip():
            raise UserError(f"{of.labels}, line {number}: '{name}' has a second class")
    yield from ((numbers[name], wanted) for name, wanted in found.items())


def _chosen(of: DataSet, source: Source) -> np.ndarray | None:
    """The images of a set that count, ascending; None for all."""
    if not of.images and not of.identities:
        return None
    chosen = np.full(len(source), not of.images)
    if of.images:
        chosen[_listed_images(of, len(source))] = True
    if of.identities:
        numbers = labels_by_name(source)
        wanted = np.zeros(source.num_classes, bool)
        for number, line in _lines(of.identities):
            if line not in numbers:
                raise UserError(f"{of.identities}, line {number}: {of.path} has no identity '{line[:80]}'")
            wanted[numbers[line]] = True
        images = np.flatnonzero(chosen)
        labels = all_labels(source, images)
        known = (labels >= 0) & (labels < source.num_classes)
        chosen[images] = known & wanted[np.where(known, labels, 0)]
    return np.flatnonzero(chosen)


def _listed_images(of: DataSet, count: int) -> np.ndarray:
    """The numbers in the list of images of a set that has ``count``, int64 (n,)."""
    assert of.images is not None  # as for whoever calls
    if of.images.endswith(".npy"):
        numbers = load_array(of.images)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise UserError(f"{of.images} has {numbers.dtype} {numbers.shape}, not a row of whole numbers")
        if len(wrong := numbers[(numbers < 0) | (numbers >= count)]):
            raise UserError(f"{of.images}: there is no image {wrong[0]} among {count} in {of.path}")
        return numbers.astype(np.int64)
    found = []
    for number, line in _lines(of.images):
        if not line.strip().isdecimal() or int(line) >= count:
            raise UserError(f"{of.images}, line {number}: '{line[:80]}' is no image of {count} in {of.path}")
        found.append(int(line))
    return np.array(found, np.int64)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that are no remarks, with their numbers. Names may be in any encoding."""
    with Path(path).open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and line[0] != "#":
                yield number, line.rstrip("\r\n")
