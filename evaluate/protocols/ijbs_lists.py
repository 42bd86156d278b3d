"""IJB-S: the templates of its protocols, from the release's lists.

Kalka et al., "IJB-S: IARPA Janus Surveillance Video Benchmark" (2018). The lists are read as AdaFace's published
evaluation reads them, each with a heading that is passed over:

``cs6_metadata.csv``                              subject, file, and more: who is seen in which file
``cs6_surveillance_to_single-booking_probe.csv``  videos, one a line; likewise ``…_to_surveillance_probe.csv``
``cs6_uav_to_single-booking_probe.csv``           videos and stills
``galleries/cs6_surveillance_to_single_g1.csv``   –, subject, file; likewise ``booking``, ``surveillance``, and ``g2``

Files are ``videos/4012.mp4`` and ``img/101146.jpg``. A video shows several people, so a template is of a subject in a
file. Six pairings follow. Five are that evaluation's; that UAV probes meet single stills, too, is taken from their
list's name. What the lists do not settle is as it is there: *multi-view* takes all videos of the metadata in which a
subject of the surveillance-to-surveillance probes is seen, of whatever kind.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from evaluate.protocols.embeddings import normalised
from pipelines.common.errors import UserError

Medium = tuple[int, str]  # a subject, and the file in which they are seen, as images are called after it: videos_4012
Template = tuple[int, tuple[str, ...]]  # a subject, and such files
PROBES = {
    "surveillance_to_single": "surveillance_to_single-booking",
    "surveillance_to_booking": "surveillance_to_single-booking",
    "multiview_surveillance_to_booking": "surveillance_to_surveillance",
    "surveillance_to_surveillance": "surveillance_to_surveillance",
    "uav_to_single": "uav_to_single-booking",
    "uav_to_booking": "uav_to_single-booking",
}


@dataclass(frozen=True)
class Templates:
    """T templates of ``subject`` int64 (T,): each ``medium`` int64 (m,) belongs to a ``template`` int64 (m,)."""

    subject: np.ndarray
    template: np.ndarray
    medium: np.ndarray

    def pool(self, sums: np.ndarray) -> np.ndarray:
        """Unit vectors float64 (T, d), or 0 without an image, of the sums (M, d) of the embeddings of each medium."""
        vectors = np.zeros((len(self.subject), sums.shape[1]))
        np.add.at(vectors, self.template, sums[self.medium])
        return normalised(vectors)


@dataclass(frozen=True)
class Pairing:
    """Templates that search, and the two galleries, which share no subject."""

    probes: Templates
    galleries: tuple[Templates, Templates]


@dataclass(frozen=True)
class Lists:
    """The pairings by name, and the number of each medium that they name."""

    pairings: dict[str, Pairing]
    media: dict[Medium, int]


def read_lists(folder: Path) -> Lists:
    """All pairings; ``UserError`` names the list and line that is none of the release's."""
    videos: dict[str, dict[int, None]] = {}  # who is seen in each, in order
    stills: dict[str, int] = {}
    path = folder / "cs6_metadata.csv"
    for line, (subject, file, *_) in _rows(path, 2):
        if file.startswith("videos"):
            videos.setdefault(file, {})[_number(subject, path, line)] = None
        else:
            stills.setdefault(file, _number(subject, path, line))
    probes = {name: _probes(folder / f"cs6_{name}_probe.csv", videos, stills) for name in sorted({*PROBES.values()})}
    of: dict[int, tuple[str, ...]] = {}
    for file, subjects in videos.items():
        for person in subjects:
            of[person] = (*of.get(person, ()), file)
    media: dict[Medium, int] = {}
    pairings = {}
    for name, listed in PROBES.items():
        against = name.rpartition("_")[2]
        searching = probes[listed]
        if name.startswith("multiview"):
            searching = [(person, of[person]) for person in dict.fromkeys(subject for subject, _ in searching)]
        galleries = (folder / f"galleries/cs6_surveillance_to_{against}_g{k}.csv" for k in (1, 2))
        first, second = (_indexed(_gallery(path, against), media) for path in galleries)
        pairings[name] = Pairing(_indexed(searching, media), (first, second))
    return Lists(pairings, media)


def _probes(path: Path, videos: Mapping[str, Iterable[int]], stills: Mapping[str, int]) -> list[Template]:
    """A template of each subject in each file that is listed."""
    found: list[Template] = []
    for line, (file, *_) in _rows(path, 1):
        if file not in videos and file not in stills:
            raise UserError(f"{path} line {line}: cs6_metadata.csv tells nobody who is seen in '{file}'")
        found += [(subject, (file,)) for subject in (videos[file] if file in videos else [stills[file]])]
    return list(dict.fromkeys(found))


def _gallery(path: Path, against: str) -> list[Template]:
    """The templates of a gallery: a subject's files together in ``booking``, else each by itself.

    A row of ``booking`` that is listed twice counts twice, as in the published evaluation.
    """
    rows = [(_number(subject, path, line), file) for line, (_, subject, file, *_) in _rows(path, 3)]
    if against != "booking":
        return [(subject, (file,)) for subject, file in dict.fromkeys(rows)]
    together: dict[int, tuple[str, ...]] = {}
    for subject, file in rows:
        together[subject] = (*together.get(subject, ()), file)
    return list(together.items())


def _rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line behind the heading."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no list {path}: --lists is the folder of cs6_metadata.csv and galleries/")
    count = 0
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        next(reader, None)
        for cells in reader:
            if len(cells) >= columns:
                yield reader.line_num, [cell.strip() for cell in cells[:columns]]
            elif any(cells):
                raise UserError(f"{path} line {reader.line_num} has {len(cells)} columns, {columns} are needed")
            count += bool(cells)
    if not count:
        raise UserError(f"{path} lists nothing")


def _number(text: str, path: Path, line: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 18):
        raise UserError(f"{path} line {line}: a subject is a whole number, not '{text}'")
    return int(text)


def _indexed(templates: Sequence[Template], media: dict[Medium, int]) -> Templates:
    """Arrays of the templates; media that are new get the next number."""
    members = [(row, (subject, _stem(file))) for row, (subject, files) in enumerate(templates) for file in files]
    return Templates(
        np.array([subject for subject, _ in templates], np.int64),
        np.array([row for row, _ in members], np.int64),
        np.array([media.setdefault(medium, len(media)) for _, medium in members], np.int64),
    )


def _stem(file: str) -> str:
    """``videos_4012`` of ``videos/4012.mp4``."""
    return "_".join(PurePosixPath(file).with_suffix("").parts)


def medium_of(subject: str, name: str) -> Medium | None:
    """Of the image ``1/videos_4012_21750.jpg`` (1, videos_4012), of ``1/img_101146.jpg`` (1, img_101146)."""
    stem = name.rpartition(".")[0]
    if stem.startswith("videos"):
        stem = "_".join(stem.split("_")[:2])
    return (int(subject), stem) if subject.isascii() and subject.isdecimal() else None
