"""Image files named in a list, in one of the layouts that are usual, told apart line by line.

- ``path label``, and any numbers behind it, separated by blanks or a tab; paths may have blanks
- ``key<TAB>label<TAB>path``, and further labels before the path: im2rec's ``.lst``. The first label counts
- ``aligned<TAB>path<TAB>label``, and a box and landmarks behind it: insightface's ``.lst``
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import IMAGE_SUFFIXES
from pipelines.common.log import get_logger
from pipelines.sources.identities import Identities, label_text, number_texts
from pipelines.sources.source import FileSource

logger = get_logger(__name__)

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", re.ASCII)


class ListSource(FileSource):
    """The files ``paths`` with ``labels`` int64 (n,), the classes of ``identities``; without them, -1, no class.

    Relative paths begin at ``folder``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        identities: Identities | None = None,
        labels: np.ndarray | None = None,
        folder: str = "",
    ) -> None:
        self._folder = folder
        labels = np.full(len(paths), -1, np.int64) if labels is None else labels
        super().__init__(identities or Identities(0), labels, paths)

    def place(self, index: int) -> str:
        return os.path.join(self._folder, self._names[index])  # noqa: PTH118  a str: there may be millions


def open_list(path: Path) -> ListSource:
    """The files that a list names; relative paths are taken from the list's folder.

    Empty lines are left out, and, with a warning, a heading and lines that begin with ``#``.
    """
    paths: list[str] = []
    texts: list[str] = []
    comments = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:  # file names may be in any encoding
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if line[0] == "#":
                comments += 1
                continue
            try:
                image, text = _path_and_label(line)
                if not paths and _is_heading(path.parent / image, text):
                    logger.warning("%s, line %d is taken for a heading: '%s'", path, number, line.strip()[:80])
                    continue
                texts.append(label_text(text))
                paths.append(image)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not 'path label' ({error}): '{line.strip()[:80]}'") from None
    if comments:
        logger.warning("%s: %d lines that begin with # are left out", path, comments)
    if not paths:
        raise UserError(f"{path} names no images; its lines should read 'path label'")
    return ListSource(paths, *number_texts(texts, (), path), str(path.parent))


def _path_and_label(line: str) -> tuple[str, str]:
    """Where no field looks like an image's path, its place is told from whether the second field is a number."""
    line = line.strip()
    if "\0" in line:
        raise UserError("it is no UTF-8 text")
    fields = [field.strip() for field in (line.split("\t") if "\t" in line else _split_at_blanks(line))]
    if len(fields) < 2 or not all(fields[:2]):
        raise UserError("something is missing")
    if len(fields) == 2:
        image, label = fields
        if _is_image(label) and not _is_image(image):
            raise UserError("the last field should be the label")
    elif _is_image(fields[-1]):
        image, label = fields[-1], fields[1]
    elif _is_image(fields[0]) and not _is_image(fields[1]):
        image, label = fields[:2]
    elif _NUMBER.fullmatch(fields[1]):
        image, label = fields[-1], fields[1]
    else:
        image, label = fields[1:3]
    if _NUMBER.fullmatch(image):
        raise UserError(f"'{image}' stands where the path should")
    return image, label


def _split_at_blanks(line: str) -> list[str]:
    """A path, which may have blanks, and what follows it, or is around it."""
    fields = line.split()
    if len(fields) == 2:
        return fields
    numbers = [bool(_NUMBER.fullmatch(field)) for field in fields]
    ends = [place for place, field in enumerate(fields, 1) if _is_image(field)]
    if len(fields) > 2 and numbers[0] and ends:
        if ends[-1] == len(fields) and numbers[1]:  # im2rec's layout
            return [*fields[:2], " ".join(fields[2:])]
        if ends[0] == 2 < len(fields) and "/" in fields[1]:  # insightface's, not a file '1 (2).jpg'
            return fields
    end = ends[-1] if ends and all(numbers[ends[-1] + 1 :]) else len(fields) - 1
    return [" ".join(fields[:end]), *fields[end:]]


def _is_image(field: str) -> bool:
    return field.lower().endswith(IMAGE_SUFFIXES)


def _is_heading(image: Path, label: str) -> bool:
    return not (_is_image(image.name) or _NUMBER.fullmatch(label) or os.path.lexists(image))
