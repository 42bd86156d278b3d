"""The lists of IJB-B and IJB-C in the layout of the insightface archives.

``meta/`` holds, with ``ijbc`` or ``ijbb`` for the target,
``<target>_name_5pts_score.txt``         image name, five landmarks x y, detector score
``<target>_face_tid_mid.txt``            image name, template id, media id
``<target>_template_pair_label.txt``     template id, template id, 1 (genuine) or 0
``<target>_1N_gallery_G1.csv``, ``_G2``  (IJB-B: S1, S2) and ``_1N_probe_mixed.csv`` with TEMPLATE_ID and SUBJECT_ID
and ``loose_crop/`` the images.
"""

import codecs
import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError, one_line

TARGETS = ("IJBB", "IJBC")


@dataclass(frozen=True)
class Images:
    """The n images in the order of the five-point list."""

    names: list[str]
    landmarks: np.ndarray  # float32 (n, 5, 2), x and y in pixels of the loose crop
    detector: np.ndarray  # float32 (n,)
    template: np.ndarray  # int64 (n,)
    media: np.ndarray  # int64 (n,)


@dataclass(frozen=True)
class TemplateList:
    """Templates of a gallery or of the probes in the list's order, each once, and their subjects: int64 (T,)."""

    template: np.ndarray
    subject: np.ndarray


class IJB:
    """IJB-B or IJB-C: ``folder`` holds it, itself or in a folder named after ``target``."""

    def __init__(self, folder: str | Path, target: str) -> None:
        assert target in TARGETS
        self.target = target
        root = Path(folder)
        self.root = root if (root / "meta").is_dir() else root / target
        if not (self.root / "meta").is_dir():
            raise FileNotFoundError(f"no folder meta in {root} or {root / target}: where are the lists of {target}?")

    def _meta(self, *names: str) -> Path:
        """The first of these lists that exists."""
        paths = [self.root / "meta" / f"{self.target.lower()}_{name}" for name in names]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(f"the list {paths[0]} is missing")

    def images(self) -> Images:
        points_path, media_path = self._meta("name_5pts_score.txt"), self._meta("face_tid_mid.txt")
        names, points = _table(points_path, 11, np.float32)
        listed, ids = _table(media_path, 2, np.int64)
        if listed != names:
            order = {name: row for row, name in enumerate(listed)}
            if not len(order) == len(listed) == len(names) or any(name not in order for name in names):
                raise UserError(
                    f"{points_path} ({len(names)} images) and {media_path} ({len(listed)}) must name the same images, "
                    "each once"
                )
            ids = ids[[order[name] for name in names]]
        return Images(names, points[:, :10].reshape(-1, 5, 2), points[:, 10], ids[:, 0], ids[:, 1])

    def image_path(self, name: str) -> Path:
        return self.root / "loose_crop" / name

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Template ids int32 (P,) and (P,), and whether they show one person: bool (P,)."""
        path = self._meta("template_pair_label.txt")
        numbers = integers(path)
        if len(numbers) % 3 or not len(numbers):
            raise UserError(f"{path} must hold three integers a line, found {len(numbers)} in all")
        first, second, label = numbers.reshape(-1, 3).T
        if label.max() > 1:
            raise UserError(f"{path}: the label must be 0 or 1, pair {label.argmax() + 1} has {label.max()}")
        if label.min() == label.max():
            raise UserError(f"{path}: the label of all {len(label)} pairs is {label[0]}; both 0 and 1 are needed")
        return np.ascontiguousarray(first), np.ascontiguousarray(second), label == 1

    def galleries(self) -> dict[str, TemplateList]:
        """Both galleries, keyed g1 and g2."""
        return {f"g{k}": _template_list(self._meta(f"1N_gallery_G{k}.csv", f"1N_gallery_S{k}.csv")) for k in (1, 2)}

    def probes(self) -> TemplateList:
        return _template_list(self._meta("1N_probe_mixed.csv"))


def _table(path: Path, columns: int, dtype: type) -> tuple[list[str], np.ndarray]:
    """A name and ``columns`` numbers a line: names (n) and numbers (n, columns)."""
    names: list[str] = []
    rest = _parted(path, names)
    first = next(rest, None)
    if first is None:
        raise UserError(f"{path} lists no image")
    try:
        # Whole numbers too are read as float64, or numpy would cut 12.7 to 12 without a word.
        numbers = np.loadtxt(chain([first], rest), np.float64, comments=None, usecols=range(columns), ndmin=2)
    except ValueError as error:
        raise UserError(f"{path} must hold a name and {columns} numbers a line: {one_line(error)}") from None
    names = [name if name.isascii() else _decoded(name) for name in names]
    if np.issubdtype(dtype, np.integer) and (bad := _no_whole_numbers(numbers).any(axis=1)).any():
        row = int(bad.argmax())
        raise UserError(f"{path} must hold whole numbers, {names[row]} has {' and '.join(map(str, numbers[row]))}")
    numbers = numbers.astype(dtype)
    return names, numbers


def _parted(path: Path, names: list[str]) -> Iterator[str]:
    """What follows the name in each line; the name is put into ``names``, which are to be ``_decoded``.

    File names may be in any encoding: as ASCII, no byte of theirs is taken for a blank, as one of à is in Latin-1.
    """
    with path.open(encoding="ascii", errors="surrogateescape") as file:
        for line in file:
            parts = line.split(None, 1)
            if parts:
                names.append(parts[0])
                yield parts[-1]


def _decoded(name: str) -> str:
    """The name in UTF-8, without the mark that Windows' programs write before a file's first."""
    return name.encode("ascii", "surrogateescape").decode("utf-8-sig", "surrogateescape")


def _no_whole_numbers(numbers: np.ndarray) -> np.ndarray:
    """Which are none that float64 holds exactly, bool of the same shape."""
    return (numbers != np.rint(numbers)) | (np.abs(numbers) > 2**53)


def _template_list(path: Path) -> TemplateList:
    try:
        return _read_template_list(path)
    except csv.Error as error:
        raise UserError(f"{path} is no table of comma-separated values: {one_line(error)}") from None


def _read_template_list(path: Path) -> TemplateList:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = {name.strip().upper(): name for name in reader.fieldnames or ()}
        if not {"TEMPLATE_ID", "SUBJECT_ID"} <= columns.keys():
            found = ", ".join(reader.fieldnames or ())
            raise UserError(
                f"{path} needs a heading with the columns TEMPLATE_ID and SUBJECT_ID, its first line is '{found[:80]}'"
            )
        subject_of: dict[int, int] = {}
        for row in reader:
            if not any(isinstance(cell, str) and cell.strip() for cell in row.values()):
                continue  # an empty line, with blanks
            try:
                template, subject = int(row[columns["TEMPLATE_ID"]]), int(row[columns["SUBJECT_ID"]])
            except (TypeError, ValueError):
                found = ", ".join(str(row[columns[name]]) for name in ("TEMPLATE_ID", "SUBJECT_ID"))
                raise UserError(
                    f"{path} line {reader.line_num}: template and subject must be integers, not '{found}'"
                ) from None
            if subject_of.setdefault(template, subject) != subject:
                raise UserError(f"{path} line {reader.line_num}: template {template} belongs to two subjects")
    if not subject_of:
        raise UserError(f"{path} lists no template")
    return TemplateList(np.fromiter(subject_of.keys(), np.int64), np.fromiter(subject_of.values(), np.int64))


def integers(path: Path, chunk: int = 1 << 20) -> np.ndarray:
    """All whitespace-separated non-negative integers of a text file, int32 (n,); ten times ``np.fromfile``'s pace."""
    data = np.fromfile(path, np.uint8)
    data = data[3:] if data[:3].tobytes() == codecs.BOM_UTF8 else data
    ends = [0]
    while ends[-1] < len(data):
        end = min(ends[-1] + chunk, len(data))
        while end < len(data) and data[end] > 32:
            end += 1
        ends.append(end)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda start, end: _parse(data[start:end], path), ends, ends[1:]))
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _parse(text: np.ndarray, path: Path) -> np.ndarray:
    """The integers in bytes (n,), digit place by digit place over all of them at once."""
    in_number = np.r_[False, text > 32, False]
    edges = np.flatnonzero(in_number[1:] != in_number[:-1])
    ends, lengths = edges[1::2], edges[1::2] - edges[::2]
    digits = text - np.uint8(ord("0"))
    if (digits[in_number[1:-1]] > 9).any() or (lengths > 9).any():
        words = (text[end - length : end].tobytes().decode(errors="replace") for end, length in zip(ends, lengths))
        wrong = next(word for word in words if not (word.isascii() and word.isdecimal()) or len(word) > 9)
        raise UserError(
            f"{path} must hold whole numbers of at most nine digits, separated by blanks, not '{wrong[:40]}'"
        )
    values = np.zeros(len(ends), np.int32)
    for place in range(lengths.max(initial=0)):
        # Where a number is shorter, the byte read is another's and counts zero times.
        values += digits[ends - (1 + place)].astype(np.int32) * (lengths > place) * np.int32(10**place)
    return values
