"""Files: reading small ones, and writing so that no reader ever meets half of one."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


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
