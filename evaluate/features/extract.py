"""Features of all images of an IJB data set in one file, made on all ranks in pieces that survive an interruption."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evaluate.features.embed import Embedder
from evaluate.features.pieces import Piece, embed_missing, split
from evaluate.protocols.embeddings import finite
from evaluate.protocols.ijb_lists import IJB, Images
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.files import load_array, remove_leftovers, replacing
from pipelines.loading.landmarks import Landmarks
from pipelines.sources.lists import ListSource
from pipelines.sources.source import Source

CHUNK = 4096  # images a piece; what an interruption costs each rank at most


def loose_crops(data: IJB, images: Images) -> tuple[Source, Landmarks]:
    """The images as they are, and their landmarks in pixels, by which `read_aligned` aligns them.

    Raises ``FileNotFoundError`` or ``UserError`` naming the first image that is missing, or that cannot be aligned.
    """
    paths = listed_images(data.root / "loose_crop", images.names)
    _check_landmarks(images)
    return ListSource([str(path) for path in paths]), images.landmarks.__getitem__


def extract(
    embed: Embedder,
    source: Source,
    landmarks: Landmarks,
    output: Path,
    key: str,
    *,
    dtype: torch.dtype = torch.float32,
    chunk: int = CHUNK,
) -> Path:
    """Write ``features.npy`` (n, 2d), original then mirrored, in ``output``; returns its path.

    All ranks call and share the work. Pieces done by an interrupted call with the same ``key`` are kept, whatever the
    number of ranks, and finished features are not computed again. ``dtype``: of the file, float32 or float16, which
    takes half the disk.
    """
    final, folder = output / "features.npy", output / "features.partial"
    pieces, world = split(len(source), chunk, folder), embed.world
    if world.main:
        _discard_others(final, folder, key, chunk)
    world.barrier()
    if not final.exists():
        embed_missing(
            pieces,
            lambda wanted: (features.to(dtype) for features in embed.batches(source, wanted, landmarks)),
            world,
            source.describe,
        )
        if world.main:
            join(pieces, final, folder)
    if world.main:
        say(f"the features are in {final}")
    return final


def listed_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """The paths of the images ``names`` in ``folder``, which is listed: a look at each would take its time.

    Raises ``FileNotFoundError`` naming the first that is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of images {folder} is missing")
    present = set()
    for inner in {os.path.dirname(name) for name in names}:  # noqa: PTH120  a name may have one: img/1.jpg
        if (folder / inner).is_dir():
            present |= {os.path.join(inner, entry.name) for entry in os.scandir(folder / inner)}  # noqa: PTH118
    missing = [name for name in names if name not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images are missing in {folder}, the first is {missing[0]}"
        )
    return [folder / name for name in names]


def _check_landmarks(images: Images) -> None:
    """Faces can be aligned by five finite points that do not all lie in one place."""
    points = images.landmarks
    finite(points, "the landmarks", images.names.__getitem__)
    bad = np.flatnonzero((points == points[:, :1]).all(axis=(1, 2)))
    if len(bad):
        raise UserError(
            f"the landmarks of {len(bad)} of {len(points)} images lie in one point, the first is {images.names[bad[0]]}"
        )


def features_key(embed: Embedder, taken: str, images: Images, dtype: torch.dtype) -> str:
    """What the features depend on, so that pieces of another model or list are not mixed in.

    Of images it knows the names alone: it is there at once, where the cache's reads them all.
    """
    digest = hashlib.sha256("\n".join(images.names).encode(errors="surrogateescape") + images.landmarks.tobytes())
    kept = {} if dtype == torch.float32 else {"features": str(dtype).removeprefix("torch.")}
    model = {"network": embed.digest, "input": taken}
    return json.dumps({**model, "images": digest.hexdigest(), "dtype": str(embed.autocast), **kept})


def _discard_others(final: Path, folder: Path, key: str, chunk: int) -> None:
    """Drop what an earlier call left for another key."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for place in (final.parent, folder):
        remove_leftovers(place)
    stamp = final.with_suffix(".json")
    if final.exists():
        if not stamp.exists():
            raise UserError(f"{final} is not this command's, which would replace it: move it, or name another --output")
        if stamp.read_text() != key:
            final.unlink()
    if not final.exists():
        marks = {stamp: key, folder / "key.json": f"{chunk} {key}"}
        if not all(path.exists() and path.read_text() == text for path, text in marks.items()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path, text in marks.items():
                with replacing(path) as temporary:
                    temporary.write_text(text)


def join(pieces: list[Piece], final: Path, folder: Path) -> None:
    """Gather the pieces, which follow one another, in one file, then drop them."""
    rows = sum(len(indices) for _, indices in pieces)
    with replacing(final) as temporary, temporary.open("wb") as file:
        for path, _ in pieces:
            piece = load_array(path)
            piece = piece.reshape(len(piece), -1)
            if not file.tell():
                layout = {"descr": piece.dtype.str, "fortran_order": False, "shape": (rows, piece.shape[1])}
                np.lib.format.write_array_header_1_0(file, layout)
            file.write(piece.tobytes())
    shutil.rmtree(folder)
