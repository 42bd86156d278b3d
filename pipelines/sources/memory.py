"""Images in memory."""

from collections.abc import Sequence

import numpy as np

from pipelines.common.errors import UserError
from pipelines.sources.identities import Identities
from pipelines.sources.source import LabelledSource


class MemorySource(LabelledSource):
    """Images in memory, such as those of a ``.bin`` set. Without labels every image has -1, no class.

    Messages call the images by ``name``, which is best the file that they come from.
    """

    def __init__(
        self, encoded: Sequence[bytes | np.ndarray], labels: np.ndarray | None = None, name: str = "memory"
    ) -> None:
        self._encoded, self._name = encoded, name
        labels = np.full(len(encoded), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
        if len(labels) != len(encoded):
            raise UserError(f"{len(encoded)} images with {len(labels)} labels")
        super().__init__(Identities(int(labels.max(initial=-1)) + 1), labels)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [np.frombuffer(self._encoded[index], np.uint8) for index in indices], self._labels[indices]

    def place(self, index: int) -> str:
        return f"{self._name}, image {index}"
