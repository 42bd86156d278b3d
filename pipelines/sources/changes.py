"""Corrections of a data set's labels, kept in a file beside it: images that are left out, and others' new classes.

The file is text, to be read and edited. Its first line says which data set it is for; each other line holds an image's
number, its new class, or ``-`` where it is left out, and why, with tabs between::

    # for 6237 images, fingerprint 2596996162
    17	-	like nobody else of 07203 (.08)
    29	112	like 07331 (.64), not 07203 (.11)

Lines that begin with # are remarks. A class that the data set does not have is a new person.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError, escaped
from pipelines.common.files import replacing
from pipelines.sources.source import Source

NOBODY = -1  # the label of an image that is left out
_CHANGE = re.compile(r"(\d{1,18})\t(-|\d{1,18})(?:\t(.*))?", re.ASCII)
_HEADING = re.compile(r"# for (\d+) images, fingerprint (\d+)", re.ASCII)


@dataclass(frozen=True)
class Changes:
    """New labels of some images of a set that has ``size`` images and a ``fingerprint``.

    Attributes:
        images: their numbers, int64 (n,), each once, ascending.
        labels: their new classes, int64 (n,), or `NOBODY`.
        reasons: why (n).
    """

    size: int
    fingerprint: int
    images: np.ndarray
    labels: np.ndarray
    reasons: Sequence[str]

    @classmethod
    def of(cls, source: Source, new: dict[int, tuple[int, str]]) -> "Changes":
        """``new``: the new label of an image of ``source``, and why, by its number."""
        return cls.sorted(len(source), source.fingerprint(), new)

    @classmethod
    def sorted(cls, size: int, fingerprint: int, new: dict[int, tuple[int, str]]) -> "Changes":
        images = sorted(new)
        labels = np.array([new[image][0] for image in images], np.int64)
        return cls(size, fingerprint, np.array(images, np.int64), labels, [new[image][1] for image in images])

    def fits(self, source: Source) -> bool:
        """Whether they are for ``source``."""
        return self.size == len(source) and self.fingerprint == source.fingerprint()

    def save(self, path: Path) -> None:
        lines = [f"# for {self.size} images, fingerprint {self.fingerprint}\n"]
        for image, label, reason in zip(self.images.tolist(), self.labels.tolist(), self.reasons):
            lines.append(f"{image}\t{'-' if label == NOBODY else label}\t{escaped(reason)}\n")
        with replacing(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def read_changes(path: Path) -> Changes:
    """The changes in a file. Raises ``ValueError`` naming the first line that is none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        heading = _HEADING.fullmatch(file.readline().strip())
        if not heading:
            raise UserError(f"{path} does not begin with '# for N images, fingerprint M': it is no file of changes")
        size, fingerprint = map(int, heading.groups())
        new: dict[int, tuple[int, str]] = {}
        for number, line in enumerate(file, 2):
            if not line.strip() or line[0] == "#":
                continue
            change = _CHANGE.fullmatch(line.rstrip("\r\n"))
            if not change:
                raise UserError(f"{path}, line {number} is not 'image<TAB>class or -<TAB>why': '{line.strip()[:80]}'")
            image = int(change[1])
            if image >= size:
                raise UserError(f"{path}, line {number}: there is no image {image} among {size}")
            if image in new:
                raise UserError(f"{path}, line {number}: image {image} is changed twice")
            new[image] = (NOBODY if change[2] == "-" else int(change[2]), change[3] or "")
    return Changes.sorted(size, fingerprint, new)


class ChangedSource:
    """A source with changed labels.

    A new class is named after the identity that its first image had before. Where several changes name one image,
    leaving it out wins, else the first.
    """

    def __init__(self, source: Source, several: Sequence[Changes]) -> None:
        known = source.num_classes
        self.num_classes = known
        new: dict[int, tuple[int, str]] = {}
        for changes in several:
            shift = self.num_classes - known  # of classes that are new, behind those of the changes before
            for image, label, reason in zip(changes.images.tolist(), changes.labels.tolist(), changes.reasons):
                if label >= known + len(changes.images):
                    raise UserError(f"the new class {label} of image {image} is too large: new ones begin with {known}")
                if image not in new or label == NOBODY:
                    new[image] = (label + shift * (label >= known), reason)
            self.num_classes = max([self.num_classes, *(label + 1 for label, _ in new.values())])
        self._source, self._changes = source, Changes.of(source, new)
        self.missing, self.shortage = source.missing, source.shortage

    @property
    def left_out(self) -> np.ndarray:
        """The images that are left out, int64 (n,), ascending."""
        return self._changes.images[self._changes.labels == NOBODY]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded, labels = self._source.read(indices)
        return encoded, self._changed(indices, labels)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._changed(indices, self._source.labels(indices))

    def identity(self, label: int) -> str:
        first = np.flatnonzero(self._changes.labels == label)[:1] if label >= self._source.num_classes else ()
        if not len(first):
            return self._source.identity(label)
        (before,) = self._source.labels(self._changes.images[first]).tolist()
        return f"{self._source.identity(before)}~{label}"

    def describe(self, index: int) -> str:
        text = self._source.describe(index)
        place = int(np.searchsorted(self._changes.images, index))
        if place < len(self._changes.images) and self._changes.images[place] == index:
            label = int(self._changes.labels[place])
            text += f", {'left out' if label == NOBODY else f'now {label}'}: {self._changes.reasons[place]}"
        return text

    def fingerprint(self) -> int:
        changed = np.stack([self._changes.images, self._changes.labels])
        return zlib.crc32(changed.astype("<i8").tobytes(), self._source.fingerprint())

    def prefetch(self, indices: np.ndarray) -> None:
        self._source.prefetch(indices)

    def _changed(self, indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
        images = self._changes.images
        if not len(images):
            return labels
        places = np.minimum(np.searchsorted(images, indices), len(images) - 1)
        return np.where(images[places] == indices, self._changes.labels[places], labels)
