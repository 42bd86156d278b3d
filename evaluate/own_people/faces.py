"""Faces of one's own people: from folders, photographs aligned on the way, to unit vectors."""

from collections.abc import Callable
from dataclasses import dataclass
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
from pipelines.sources.source import FileSource, Source


@dataclass(frozen=True)
class Faces:
    """Images of people: ``paths`` (n), ``names`` (n) of whom they show, unit ``vectors`` float64 (n, d)."""

    paths: list[str]
    names: list[str]
    vectors: np.ndarray


def open_folder(folder: Path) -> FileSource:
    """The images ``identity/image``, or, where none lies in a folder, each of a person of their own."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    flat = sorted(str(path) for path in folder.iterdir() if is_image(path.name))
    if not flat or any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        return FolderSource(folder)
    return ListSource(flat, *number_names([Path(path).name for path in flat]))


def read_faces(folder: Path, embed: Embedder, align: Landmarks | None, crops: dict[str, np.ndarray]) -> Faces:
    """The faces of a folder, aligned by ``align``, whose crops are put into ``crops`` by the photographs' paths."""
    source = open_folder(folder)
    images: Source = source
    kept = np.arange(len(source))
    landmarks: Callable[[np.ndarray], np.ndarray] = template_landmarks
    if align:
        places = np.zeros((len(source), 5, 2), np.float32)
        reads = [read for some in read_all(source, kept, transform=Align(align, aligned=places)) for read in some]
        good, bad = ([read for read in reads if bool(read.reason) == wrong] for wrong in (False, True))
        if bad:
            first = f"{source.place(bad[0].index)}: {bad[0].reason}"
            say(f"{folder}: {len(bad)} of {len(reads)} photographs are left out, the first is {first}")
        if not good:
            raise UserError(f"{folder} has no photograph in which a face is found")
        kept = np.array([read.index for read in good])
        images, landmarks = MemorySource([read.encoded for read in good], name=str(folder)), places[kept].__getitem__
        crops |= {source.place(read.index): read.encoded for read in good}
    vectors = normalised(embed(images, landmarks).sum(axis=1).astype(np.float64))
    names = [source.identity(label) for label in source.labels(kept).tolist()]
    return Faces([source.place(index) for index in kept.tolist()], names, vectors)
