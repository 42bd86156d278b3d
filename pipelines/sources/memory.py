"""Images in memory."""

from collections.abc import Sequence

import numpy as np

from pipelines.common.errors import UserError


class MemorySource:
    """Images in memory, such as those of a ``.bin`` set. Without labels every image has -1, no class.

    Messages call the images by ``name``, which is best the file that they come from.
    """

    def __init__(
        self, encoded: Sequence[bytes | np.ndarray], labels: np.ndarray | None = None, name: str = "memory"
    ) -> None:
        self._encoded, self._name, self._labelled = encoded, name, labels is not None
        self._labels = np.full(len(encoded), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
        if len(self._labels) != len(encoded):
            raise UserError(f"{len(encoded)} images with {len(self._labels)} labels")
        self.num_classes = int(self._labels.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self._encoded)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [np.frombuffer(self._encoded[index], np.uint8) for index in indices], self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return str(label)

    def describe(self, index: int) -> str:
        return f"{self._name}, image {index}" + (f", label {self._labels[index]}" if self._labelled else "")

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: the images are here."""
