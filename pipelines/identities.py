"""Names of identities and the class numbers they get, and ``identities.json``, which keeps the names beside a data set.

``identities.json`` is a list of names: the n-th is that of class n.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.files import replacing
from pipelines.recordio import LABEL_LIMIT

FILE = "identities.json"


@dataclass(frozen=True)
class Identities:
    """``count`` classes. Those without a name are called by their number."""

    count: int
    names: Sequence[str] = ()

    def name(self, label: int) -> str:
        return self.names[label] if 0 <= label < len(self.names) else str(label)


def number_identities(names: Sequence[str], known: Sequence[str] = ()) -> tuple[Identities, np.ndarray]:
    """The identities behind the images' ``names`` (n), and labels int64 (n,).

    Where all names are whole numbers, as in many lists, they are the labels as they stand and ``known`` their names;
    else the names are numbered in sorted order.
    """
    if all(name.isdecimal() and name.isascii() for name in names):
        labels = np.array([min(int(name), LABEL_LIMIT) for name in names], np.int64)
        count = max(int(labels.max(initial=-1)) + 1, len(known))
        if count <= LABEL_LIMIT:
            return Identities(count, known), labels
    ordered = sorted(set(names))
    numbers = {name: number for number, name in enumerate(ordered)}
    return Identities(len(ordered), ordered), np.array([numbers[name] for name in names], np.int64)


def read_identities(folder: Path) -> list[str]:
    """The names in the ``identities.json`` of a folder; none where there is no such file."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} should be a list of names, the n-th that of class n")
    return names


def write_identities(folder: Path, names: Sequence[str]) -> None:
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(list(names)), encoding="utf-8")  # ASCII: holds any file name, decodable or not
