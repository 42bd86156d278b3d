"""Verification pairs as the protocol needs them: a ``.bin`` or ``.xz`` set, or a list with its folder of images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evaluate.protocols.folds import FOLDS
from evaluate.protocols.side_lists import unpacked
from pipelines.common.errors import UserError
from pipelines.loading.landmarks import Landmarks, landmarks_beside
from pipelines.prepare.pairs import find_files
from pipelines.prepare.pairs import read_pairs as read_list
from pipelines.sources.bins import BinSet, read_bin
from pipelines.sources.memory import MemorySource
from pipelines.sources.selected import SelectedSource
from pipelines.sources.source import Source


def read_pairs(path: Path) -> BinSet:
    """A set that has pairs enough for the protocol; a ``ValueError`` names the file if not.

    ``path`` is a ``.bin`` or ``.xz`` file, or a ``.txt`` list of pairs in LFW's format, as RFW's ``African_pairs.txt``.
    """
    pairs = listed(path) if path.suffix == ".txt" else read_bin(path)
    if len(pairs.same) < FOLDS:
        raise UserError(
            f"{path} has {len(pairs.same)} pairs, too few: the protocol needs {FOLDS} folds of at least one"
        )
    return pairs


def listed(path: Path) -> BinSet:
    """The pairs of a list; image n of a person is ``<person>/<person>_<n with four digits>``, with any suffix.

    The people's folders lie beside ``X_pairs.txt``, in a folder ``X`` there, or where RFW's release has them: in
    ``data/X`` beside the ``txts/X`` that the list lies in. Images are to be aligned, as those of ``.bin`` sets are.
    """
    pairs, same = read_list(path)
    group = path.stem.removesuffix("_pairs")
    people = pairs[0][0][0]
    places = path.parent, path.parent / group, path.parent.parent.parent / "data" / group
    folder = next((place for place in places if (place / people).is_dir()), None)
    if folder is None:
        raise UserError(
            f"{path} lists images of '{people}', of whom there is no folder in {', '.join(map(str, places))}"
        )
    return BinSet(find_files(folder, [image for pair in pairs for image in pair]), same)


class PairImages:
    """The images of a verification set, each once: in its pairs they come again (LFW's 12 000 are 7 701).

    Attributes:
        first: int64 (n,), where among the images of the pairs each distinct one first stands.
        rows: int64 (2P,), the distinct image that each image of the pairs is.
        source: the distinct images; messages tell where they first stand.
        landmarks: theirs.
    """

    def __init__(self, path: Path, encoded: Sequence[bytes]) -> None:
        landmarks = landmarks_beside(unpacked(path), len(encoded))
        known: dict[tuple[bytes, bytes], int] = {}
        keys = zip(encoded, map(np.ndarray.tobytes, landmarks(np.arange(len(encoded)))))
        self.rows = np.array([known.setdefault(key, len(known)) for key in keys])
        _, self.first = np.unique(self.rows, return_index=True)
        self.source = SelectedSource(MemorySource(encoded, name=str(path)), self.first, np.arange(0))
        self.landmarks: Landmarks = lambda indices: landmarks(self.first[indices])

    def embedded(self, embed: Callable[[Source, Landmarks], np.ndarray]) -> np.ndarray:
        """Features (2P, v, d) of all images of the pairs by an `Embedder`; every rank must call."""
        return embed(self.source, self.landmarks)[self.rows]
