"""Some images of a data set, and identities taken for one another."""

import zlib

import numpy as np

from pipelines.sources.source import Source


class SelectedSource:
    """The ``images`` of a source, int64 (n,), or all of them (None), with other labels.

    An image of the source's class c has the label ``classes[c]``, int64 (classes of the source,); -1 is no class. Of
    classes that become one the first gives the name.
    """

    def __init__(self, source: Source, images: np.ndarray | None, classes: np.ndarray) -> None:
        self._source, self._images, self._classes = source, images, classes
        self.num_classes = int(classes.max(initial=-1)) + 1
        _, self._first = np.unique(classes[classes >= 0], return_index=True)
        self._first = np.flatnonzero(classes >= 0)[self._first]
        self.missing, self.shortage = source.missing, source.shortage

    def __len__(self) -> int:
        return len(self._source) if self._images is None else len(self._images)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded, labels = self._source.read(self._own(indices))
        return encoded, self._renumbered(labels)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._renumbered(self._source.labels(self._own(indices)))

    def identity(self, label: int) -> str:
        return self._source.identity(int(self._first[label])) if 0 <= label < self.num_classes else str(label)

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._own(np.array([index]))[0]))

    def fingerprint(self) -> int:
        images = np.arange(0) if self._images is None else self._images
        return zlib.crc32(np.concatenate([self._classes, images]).astype("<i8").tobytes(), self._source.fingerprint())

    def prefetch(self, indices: np.ndarray) -> None:
        self._source.prefetch(self._own(indices))

    def _own(self, indices: np.ndarray) -> np.ndarray:
        return indices if self._images is None else self._images[indices]

    def _renumbered(self, labels: np.ndarray) -> np.ndarray:
        known = (labels >= 0) & (labels < len(self._classes))
        renumbered = np.full(labels.shape, -1, np.int64)
        renumbered[known] = self._classes[labels[known]]
        return renumbered
