"""Names of identities and the class numbers they get, and ``identities.json``, which keeps the names beside a data set.

Folder names are names, whatever they look like: ``0000045`` is nobody's number 45. Numbers are class numbers only where
a label says so: a ``.cls``, a label column, the label of a list or of a record. ``identities.json`` is a list of names:
the n-th is that of class n.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import replacing
from pipelines.common.log import get_logger

logger = get_logger(__name__)

FILE = "identities.json"
_CLASS_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})(\.0*)?", re.ASCII)  # im2rec writes 3.000000; 18 digits fit into int64
_OTHER_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]*)?|[0-9]+\.[0-9]+", re.ASCII)
_MISSING = frozenset(("", "None", "null", "nan", "NaN"))  # what Python, JSON and pandas write where a label is missing
_SPARE = 16  # classes without an image that a set may have, however few have images


@dataclass(frozen=True)
class Identities:
    """``count`` classes. Those without a name are called by their number."""

    count: int
    names: Sequence[str] = ()

    def name(self, label: int) -> str:
        return self.names[label] if 0 <= label < len(self.names) else str(label)


def number_names(names: Sequence[str]) -> tuple[Identities, np.ndarray]:
    """The identities behind the images' ``names`` (n), numbered in sorted order, and labels int64 (n,)."""
    ordered = sorted(set(names))
    numbers = {name: number for number, name in enumerate(ordered)}
    return Identities(len(ordered), ordered), np.array([numbers[name] for name in names], np.int64)


def number_labels(labels: np.ndarray, known: Sequence[str], where: object) -> tuple[Identities, np.ndarray]:
    """The identities behind class numbers, int64 (n,) from 0, and their labels, int64 (n,).

    ``known``: names of the classes 0, 1, …, if any. The numbers stand as they are if ``known`` has a name for each, or
    if they are nearly dense: less than twice as many as there are identities, and 16. Else they are names like any
    others and get new numbers, in ascending order. A warning says so, about the data set ``where``.
    """
    present = np.unique(labels)
    greatest = int(present[-1])
    if greatest < len(known):
        return Identities(len(known), known), labels
    if known:
        logger.warning("%s: labels go up to %d, but only %d classes have names", where, greatest, len(known))
    if are_classes(present, where):
        return Identities(greatest + 1, known), labels
    old = Identities(greatest + 1, known)
    return Identities(len(present), list(map(old.name, present.tolist()))), np.searchsorted(present, labels)


def are_classes(present: np.ndarray, where: object) -> bool:
    """Whether labels, int64 (c,), each once and ascending, are nearly dense; warns where they are not."""
    greatest, count = int(present[-1]), len(present)
    if greatest < 2 * count + _SPARE:
        return True
    logger.warning("%s: labels up to %d for %d identities: numbered anew in ascending order", where, greatest, count)
    return False


def number_texts(texts: Sequence[str], known: Sequence[str], where: object) -> tuple[Identities, np.ndarray]:
    """``number_labels`` for labels (n) as ``label_text`` gives them if all are class numbers, else ``number_names``."""
    if all(map(_CLASS_NUMBER.fullmatch, texts)):
        return number_labels(np.array(texts, np.int64), known, where)
    return number_names(texts)


def label_text(text: str) -> str:
    """A label that is written as text: a name, or a class number without a fraction. Raises ``ValueError`` for others.

    Numbers with leading zeros are names.
    """
    text = text.strip()
    if text in _MISSING:
        raise UserError(f"the label is missing ('{text}')" if text else "the label is missing")
    if number := _CLASS_NUMBER.fullmatch(text):
        return number[1]
    if _OTHER_NUMBER.fullmatch(text):
        raise UserError(f"label {text} is no class number")
    return text


def read_identities(folder: Path) -> list[str]:
    """The names in the ``identities.json`` of a folder; none where there is no such file."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} should be a list of names in quotes, the n-th that of class n")
    return names


def write_identities(folder: Path, names: Sequence[str]) -> None:
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(list(names)), encoding="utf-8")  # ASCII: holds any file name, decodable or not
