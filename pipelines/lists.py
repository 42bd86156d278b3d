"""Image files named in a list: lines ``path label``, or ``key<TAB>label<TAB>path`` as in im2rec's ``.lst``."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.files import read_file
from pipelines.identities import number_identities


class ListSource:
    """The files ``paths``, whose identities are ``names``."""

    def __init__(self, paths: Sequence[str], names: Sequence[str]) -> None:
        self._paths = paths
        self._identities, self._labels = number_identities(names)
        self.num_classes = self._identities.count

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = [read_file(self._paths[index]) for index in indices]
        for index, image in zip(indices, encoded):
            if not len(image):
                raise ValueError(f"{self._paths[index]} is empty")
        return encoded, self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        return f"{self._paths[index]}, label {self._labels[index]}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: to hint at a file one has to open it, which waits for the disk."""


def open_list(path: Path) -> ListSource:
    """The files that a list names; relative paths are taken from the list's folder. Empty lines are left out."""
    paths, names = [], []
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:  # file names may be in any encoding
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            image, label = (fields[-1], fields[1]) if len(fields) > 2 else _path_and_label(line)
            if not image or not label:
                raise ValueError(f"{path}, line {number} is not 'path label': '{line.strip()[:80]}'")
            paths.append(os.path.join(path.parent, image))  # noqa: PTH118  a str: there may be millions
            names.append(_whole(label) if len(fields) > 2 else label)
    if not paths:
        raise ValueError(f"{path} names no images; its lines should read 'path label'")
    return ListSource(paths, names)


def _path_and_label(line: str) -> tuple[str, str]:
    """The label is what follows the last blank: paths may have blanks."""
    path, *label = line.strip().rsplit(maxsplit=1)
    return path, label[0] if label else ""


def _whole(label: str) -> str:
    """im2rec writes labels as 3.000000."""
    whole, _, fraction = label.partition(".")
    return label if fraction.strip("0") else whole
