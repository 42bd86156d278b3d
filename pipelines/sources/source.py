"""What a source of images is."""

from typing import Protocol

import numpy as np


class Source(Protocol):
    """A numbered set of encoded images. ``read`` may be called from several threads."""

    num_classes: int

    def __len__(self) -> int:
        """Images."""

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Encoded images, each uint8 (bytes,) and not to be written to, and their labels, int64 (b,), as stored.

        Raises ``ValueError`` or ``OSError`` naming the first image that cannot be read; then read them one by one.
        """

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The labels that ``read`` would give, int64 (b,), without reading the images; -1 where one is damaged."""

    def identity(self, label: int) -> str:
        """The name of a class; its number where it has none."""

    def describe(self, index: int) -> str:
        """Where an image comes from, for messages. Never raises for an index below ``len``."""

    def prefetch(self, indices: np.ndarray) -> None:
        """Hint that these images will be read soon."""
