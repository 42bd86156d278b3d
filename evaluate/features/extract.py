"""Features of all images of an IJB data set, on all ranks, in pieces that survive an interruption."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.features.embed import embed_batches
from evaluate.features.network import Network, load_network
from evaluate.features.pieces import Piece, in_pieces, make_missing, split
from evaluate.features.ranks import ranks
from evaluate.protocols.embeddings import finite
from evaluate.protocols.ijb_lists import IJB, Images
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.files import load_array, remove_leftovers, replacing, save_array
from pipelines.loading.aligned import aligned_images

CHUNK = 4096  # images a piece; what an interruption costs each rank at most


def extract(
    data: IJB,
    images: Images,
    checkpoint: Path,
    backbone: str | None,
    output: Path,
    *,
    given: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    threads: int = 4,
    autocast: torch.dtype | None = None,
    dtype: type[np.floating] = np.float32,
    chunk: int = CHUNK,
) -> Path | None:
    """Write ``features.npy`` (n, 2d), original then mirrored, in ``output``; its path on rank 0, else None.

    Under torchrun the ranks share the work. Pieces done by an interrupted call with the same checkpoint and images are
    kept, whatever the number of ranks, and finished features are not computed again. ``backbone`` and ``given`` are
    `load_network`'s. ``dtype``: of the file, float32 or float16, which takes half the disk.
    """
    paths = _paths(data, images)
    _check_landmarks(images)
    final, folder = output / "features.npy", output / "features.partial"
    pieces = split(len(paths), chunk, folder)
    with ranks() as world:
        network = load_network(checkpoint, backbone, world.device, given)
        if world.main:
            say(f"the network takes {network.input}")
            _discard_others(final, folder, _key(network, images, autocast, dtype), chunk)
        world.barrier()

        def make(share: list[Piece]) -> None:
            aligned = aligned_images(
                paths,
                images.landmarks,
                batches(share, batch_size),
                batch_size=batch_size,
                image_size=network.input_size,
                device=world.device,
                threads=threads,
            )
            features = embed_batches(network.model, aligned, autocast=autocast)
            write_pieces(share, features, images.names, dtype, show=world.main)

        if not final.exists():
            make_missing(pieces, world, make)
            if world.main:
                join(pieces, final, folder)
        return final if world.main else None


def _paths(data: IJB, images: Images) -> list[Path]:
    folder = data.root / "loose_crop"
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of images {folder} is missing")
    present = set()
    for inner in {os.path.dirname(name) for name in images.names}:  # noqa: PTH120  NIST's names have one: img/1.jpg
        if (folder / inner).is_dir():
            present |= {os.path.join(inner, entry.name) for entry in os.scandir(folder / inner)}  # noqa: PTH118
    missing = [name for name in images.names if name not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images.names)} images are missing in {folder}, the first is {missing[0]}"
        )
    return [data.image_path(name) for name in images.names]


def _check_landmarks(images: Images) -> None:
    """Faces can be aligned by five finite points that do not all lie in one place."""
    points = images.landmarks
    finite(points, "the landmarks", images.names.__getitem__)
    bad = np.flatnonzero((points == points[:, :1]).all(axis=(1, 2)))
    if len(bad):
        raise UserError(
            f"the landmarks of {len(bad)} of {len(points)} images lie in one point, the first is {images.names[bad[0]]}"
        )


def input_of(features: Path) -> str:
    """What the network took from which `extract` wrote these ``features``."""
    return json.loads(features.with_suffix(".json").read_text())["input"]


def _key(network: Network, images: Images, autocast: torch.dtype | None, dtype: type[np.floating]) -> str:
    """What the features depend on, so that pieces of another model or list are not mixed in."""
    digest = hashlib.sha256("\n".join(images.names).encode(errors="surrogateescape") + images.landmarks.tobytes())
    kept = {} if dtype is np.float32 else {"features": np.dtype(dtype).name}
    model = {"network": network.digest(), "input": network.input}
    return json.dumps({**model, "images": digest.hexdigest(), "dtype": str(autocast), **kept})


def _discard_others(final: Path, folder: Path, key: str, chunk: int) -> None:
    """Drop what an earlier call left for another key."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for place in (final.parent, folder):
        remove_leftovers(place)
    stamp = final.with_suffix(".json")
    if final.exists() and not (stamp.exists() and stamp.read_text() == key):
        final.unlink()
    if not final.exists():
        mark = folder / "key.json"
        if not (mark.exists() and mark.read_text() == f"{chunk} {key}"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path, text in ((mark, f"{chunk} {key}"), (stamp, key)):
                with replacing(path) as temporary:
                    temporary.write_text(text)


def batches(pieces: Iterable[Piece], batch_size: int) -> Iterator[np.ndarray]:
    """The indices of all ``pieces`` for one pipeline; no batch holds those of two."""
    for _, indices in pieces:
        yield from np.split(indices, range(batch_size, len(indices), batch_size))


def write_pieces(
    pieces: list[Piece], features: Iterator[Tensor], names: list[str], dtype: type[np.floating], *, show: bool
) -> None:
    """Write each piece of ``features`` (b, 2, d), batches of all ``pieces`` one after the other."""
    joined = in_pieces(features, [len(indices) for _, indices in pieces], show=show)
    for (path, indices), piece in zip(pieces, joined, strict=True):
        with np.errstate(over="ignore"):  # told as what it is, not finite
            piece = piece.astype(dtype)
        finite(piece, "the network's embeddings", [names[index] for index in indices].__getitem__)
        save_array(path, piece.reshape(len(piece), -1))


def join(pieces: list[Piece], final: Path, folder: Path) -> None:
    """Gather the pieces, which follow one another, in one file, then drop them."""
    rows = sum(len(indices) for _, indices in pieces)
    with replacing(final) as temporary, temporary.open("wb") as file:
        for path, _ in pieces:
            piece = load_array(path)
            if not file.tell():
                layout = {"descr": piece.dtype.str, "fortran_order": False, "shape": (rows, piece.shape[1])}
                np.lib.format.write_array_header_1_0(file, layout)
            file.write(piece.tobytes())
    shutil.rmtree(folder)
