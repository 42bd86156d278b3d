"""The features of many images in pieces that are files of their own: one that is there is done."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from evaluate.features.ranks import World
from evaluate.protocols.embeddings import finite
from pipelines.common.files import save_array

Piece = tuple[Path, np.ndarray]  # its file, its images' indices int64 (n,), which follow one another
_LEAST, _MOST_FILES = 1024, 256  # images a file, unless there would be more files than that


def rows_a_file(count: int) -> int:
    """Images of a file of ``count`` images in all."""
    return max(_LEAST, -(-count // _MOST_FILES))


def split(count: int, rows: int, folder: Path) -> list[Piece]:
    """``count`` images in pieces of ``rows``, to be written in ``folder``."""
    return [
        (folder / f"{number:06d}.npy", np.arange(start, min(start + rows, count)))
        for number, start in enumerate(range(0, count, rows))
    ]


def make_missing(pieces: Sequence[Piece], world: World, make: Callable[[list[Piece]], None]) -> None:
    """Let each rank ``make`` a share of the ``pieces`` whose files are missing; all ranks call, and leave together.

    The pieces lie in one folder, which is listed: a network file system that was asked for a file before it was there
    may go on saying that it is not.
    """
    present = {entry.name for entry in os.scandir(pieces[0][0].parent)}
    missing = [piece for piece in pieces if piece[0].name not in present]
    world.barrier()  # all have looked before the first writes
    share = missing[slice(*(len(missing) * k // world.size for k in (world.rank, world.rank + 1)))]
    if share:
        make(share)
    world.barrier()


def embed_missing(
    pieces: Sequence[Piece],
    batches: Callable[[np.ndarray], Iterator[Tensor]],
    world: World,
    describe: Callable[[int], str],
) -> None:
    """Write the ``pieces`` whose files are not there, (n, v, d) each, as `make_missing` has them made.

    ``batches`` gives the features (b, v, d) of the images of indices (n,); ``describe`` names one whose are not finite,
    which is a ``ValueError``.
    """

    def make(share: list[Piece]) -> None:
        features = batches(np.concatenate([indices for _, indices in share]))
        joined = in_pieces(features, [len(indices) for _, indices in share])
        for (path, indices), piece in zip(share, joined, strict=True):
            finite(piece, "the network's embeddings", lambda row: describe(int(indices[row])))  # noqa: B023
            save_array(path, piece)

    make_missing(pieces, world, make)


def in_pieces(features: Iterator[Tensor], lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Join batches of features (b, v, d) to pieces (length, v, d) of these ``lengths``, one after the other."""
    rows: list[np.ndarray] = []
    for length in lengths:
        while sum(map(len, rows)) < length:
            rows.append(next(features).cpu().numpy())
        joined = np.concatenate(rows)
        yield joined[:length]
        rows = [joined[length:]]
