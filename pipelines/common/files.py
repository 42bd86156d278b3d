"""Files: reading small ones, and writing so that no reader ever meets half of one."""

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError


def distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """Names to tell paths apart by: each one's last part, led by as many folders as it takes.

    ``[a/lfw, b/lfw, b/agedb_30]`` are a/lfw, b/lfw and agedb_30. Raises ``ValueError`` for a path given twice.
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100  links stay as they are
    for place, path in enumerate(paths):
        if parts[place] in parts[:place]:
            raise UserError(f"{path} is given twice")
    depths = [1] * len(parts)
    while True:
        names = ["/".join(part[-depth:]).lstrip("/") for part, depth in zip(parts, depths)]
        counts = Counter(names)
        if len(counts) == len(names):
            return names
        depths = [depth + (counts[name] > 1) for depth, name in zip(depths, names)]


def read_file(path: str) -> np.ndarray:
    """The bytes of a file, uint8 (bytes,); for small ones twice as quick as ``np.fromfile``."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a str: there may be millions
        return np.frombuffer(file.read(), np.uint8)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``. What is written there takes the place of ``path`` if the block ends well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
