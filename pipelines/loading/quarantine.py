"""Images that cannot be read or decoded: they are told of once, and too many of them end a run."""

import json
import logging
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import naming
from pipelines.sources.source import Source

logger = logging.getLogger(__name__)


class Quarantine:
    """The bad images of a source by index. Each is logged and, with a ``path``, becomes a line of JSON there."""

    def __init__(self, source: Source, *, max_fraction: float, path: str | Path | None) -> None:
        self._source = source
        self._max_fraction = max_fraction
        self._path = Path(path) if path else None
        self._indices: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, index: int, reason: str) -> None:
        """Raises ``ValueError`` when more than ``max_fraction`` of all images are bad."""
        if index in self:
            return
        self._indices.add(index)
        image = self._source.describe(index)
        logger.warning("a bad image is replaced by another: %s: %s", image, reason)
        if self._path:
            # Written at once, so that the lines of several ranks do not mix.
            with naming(self._path), self._path.open("a") as file:
                file.write(json.dumps({"index": index, "image": image, "reason": reason}) + "\n")
        bad, size = len(self), len(self._source)
        if bad > self._max_fraction * size or bad == size:
            raise UserError(
                f"{bad} of {size} images are bad, more than the fraction {self._max_fraction:g} that max_bad_fraction"
                f" allows; the last one is {image}: {reason}"
            )
