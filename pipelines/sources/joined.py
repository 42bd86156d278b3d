"""Several data sets as one, the people of each taken for others than those of the rest."""

import zlib
from collections.abc import Mapping

import numpy as np

from pipelines.sources.changes import NOBODY, Changes
from pipelines.sources.source import Source


class JoinedSource:
    """The images and the classes of ``sources``, by name, one behind the other; none of a set's people is in another.

    An identity is called ``<name of the set>/<name there>``. A label that is no class of its set is -1 here.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._names, self._sources = list(sources), list(sources.values())
        self._images = np.cumsum([0, *map(len, self._sources)])
        self._classes = np.cumsum([0, *(source.num_classes for source in self._sources)])
        self.num_classes = int(self._classes[-1])
        self.missing = sum(source.missing for source in self._sources)
        self.shortage = "; ".join(source.shortage for source in self._sources if source.shortage)

    def __len__(self) -> int:
        return int(self._images[-1])

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded: list[np.ndarray] = [np.empty(0, np.uint8)] * len(indices)
        labels = np.empty(len(indices), np.int64)
        for which, rows, own in self._parts(indices):
            images, stored = self._sources[which].read(own)
            labels[rows] = self._renumbered(which, stored)
            for row, image in zip(rows.tolist(), images):
                encoded[row] = image
        return encoded, labels

    def labels(self, indices: np.ndarray) -> np.ndarray:
        labels = np.empty(len(indices), np.int64)
        for which, rows, own in self._parts(indices):
            labels[rows] = self._renumbered(which, self._sources[which].labels(own))
        return labels

    def identity(self, label: int) -> str:
        if not 0 <= label < self.num_classes:
            return str(label)
        which = int(np.searchsorted(self._classes, label, side="right")) - 1
        return f"{self._names[which]}/{self._sources[which].identity(label - int(self._classes[which]))}"

    def describe(self, index: int) -> str:
        which = int(np.searchsorted(self._images, index, side="right")) - 1
        return f"{self._names[which]}: {self._sources[which].describe(int(index - self._images[which]))}"

    def fingerprint(self) -> int:
        parts = [(len(source), source.num_classes, source.fingerprint()) for source in self._sources]
        return zlib.crc32(np.array(parts, "<i8").tobytes())

    def prefetch(self, indices: np.ndarray) -> None:
        for which, _, own in self._parts(indices):
            self._sources[which].prefetch(own)

    def moved(self, name: str, changes: Changes) -> Changes:
        """Changes of the set ``name`` as changes of all."""
        which = self._names.index(name)
        labels, own = changes.labels, self._sources[which].num_classes
        new = np.where(labels < own, labels + self._classes[which], labels - own + self.num_classes)
        return Changes(
            len(self),
            self.fingerprint(),
            changes.images + self._images[which],
            np.where(labels == NOBODY, NOBODY, new),
            changes.reasons,
        )

    def _parts(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Of each source that these images are in: its number, their rows in ``indices``, and their numbers there."""
        of = np.searchsorted(self._images, indices, side="right") - 1
        rows_of = ((which, np.flatnonzero(of == which)) for which in np.unique(of).tolist())
        return [(which, rows, indices[rows] - self._images[which]) for which, rows in rows_of]

    def _renumbered(self, which: int, labels: np.ndarray) -> np.ndarray:
        known = (labels >= 0) & (labels < self._sources[which].num_classes)
        return np.where(known, labels + self._classes[which], -1)
