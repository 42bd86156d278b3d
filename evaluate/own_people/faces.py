"""Faces of one's own people: from folders, photographs aligned on the way, to unit vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluate.features.embed import Embedder
from evaluate.protocols.embeddings import normalised
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.formats import is_image
from pipelines.loading.landmarks import template_landmarks
from pipelines.prepare.align import Align, Landmarks
from pipelines.prepare.reading import read_all
from pipelines.sources.folder import FolderSource
from pipelines.sources.identities import number_names
from pipelines.sources.lists import ListSource
from pipelines.sources.memory import MemorySource
from pipelines.sources.selected import SelectedSource
from pipelines.sources.source import FileSource, Source


@dataclass(frozen=True)
class Faces:
    """Images of people: ``paths`` (n), ``names`` (n) of whom they show, unit ``vectors`` float64 (n, d).

    ``left_out``: how many more photographs there were.
    """

    paths: list[str]
    names: list[str]
    vectors: np.ndarray
    left_out: int = 0


@dataclass(frozen=True)
class Photographs:
    """Images of people that are to be embedded.

    Attributes:
        paths, names: where they lie, and whom they show, (n) each.
        images: themselves, aligned if they were not.
        landmarks: theirs.
        left_out: how many more there were, in which no face is found, or whose person has none in the gallery.
    """

    paths: list[str]
    names: list[str]
    images: Source
    landmarks: Callable[[np.ndarray], np.ndarray] = template_landmarks
    left_out: int = 0

    def only(self, rows: np.ndarray) -> "Photographs":
        """Those of these ``rows`` int64 (k,), rising; the others are left out."""
        return Photographs(
            [self.paths[row] for row in rows],
            [self.names[row] for row in rows],
            SelectedSource(self.images, rows, np.arange(0)),
            lambda indices: self.landmarks(rows[indices]),
            self.left_out + len(self.paths) - len(rows),
        )

    def embedded(self, embed: Embedder) -> Faces:
        vectors = normalised(embed(self.images, self.landmarks).sum(axis=1).astype(np.float64))
        return Faces(self.paths, self.names, vectors, self.left_out)


def open_folder(folder: Path) -> FileSource:
    """The images ``identity/image``, or, where none lies in a folder, each of a person of their own."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    flat = sorted(str(path) for path in folder.iterdir() if is_image(path.name))
    if not flat or any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        return FolderSource(folder)
    return ListSource(flat, *number_names([Path(path).name for path in flat]))


def open_photographs(folder: Path) -> Photographs:
    """The images of a folder as they are."""
    source = open_folder(folder)
    everything = np.arange(len(source))
    names = [source.identity(label) for label in source.labels(everything).tolist()]
    return Photographs([source.place(index) for index in everything.tolist()], names, source)


def align_faces(found: Photographs, folder: Path, align: Landmarks, crops: dict[str, np.ndarray]) -> Photographs:
    """Photographs of a folder aligned by ``align``; their crops are put into ``crops`` by their paths."""
    count = len(found.paths)
    places = np.zeros((count, 5, 2), np.float32)
    transform = Align(align, aligned=places)
    reads = [read for some in read_all(found.images, np.arange(count), transform=transform) for read in some]
    good, bad = ([read for read in reads if bool(read.reason) == wrong] for wrong in (False, True))
    if bad:
        first = f"{found.paths[bad[0].index]}: {bad[0].reason}"
        say(f"{folder}: {len(bad)} of {count} photographs are left out, the first is {first}")
    if not good:
        raise UserError(f"{folder} has no photograph in which a face is found")
    kept = found.only(np.array([read.index for read in good]))
    crops |= {path: read.encoded for path, read in zip(kept.paths, good)}
    images = MemorySource([read.encoded for read in good], name=str(folder))
    landmarks = places[[read.index for read in good]].__getitem__
    return replace(kept, images=images, landmarks=landmarks)
