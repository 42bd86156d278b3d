"""Embeddings that are kept on disk: what one command has made of some images with a network, no other makes again."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from evaluate.features.embed import Embedder
from evaluate.features.pieces import embed_missing, rows_a_file, split
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.files import load_array
from pipelines.common.progress import with_progress
from pipelines.loading.landmarks import Landmarks, template_landmarks
from pipelines.sources.source import Source

_READ = 1024  # images that are read at a time for the key


@dataclass(frozen=True)
class CachedEmbedder(Embedder):
    """An `Embedder` that keeps what the network gives in a folder, float32 (n, v, d) in files of some thousand images.

    The folder's name is a hash of the network, of all that is done to the images before it, and of the bytes of all
    images. So what is read was made of the same images, whichever file they came in; and who was interrupted goes on
    with the files that are missing. Ranks need to see one disk.

    Attributes:
        cache: where such folders lie.
    """

    cache: Path = field(kw_only=True)

    def batches(
        self, source: Source, indices: np.ndarray, landmarks: Landmarks = template_landmarks
    ) -> Iterator[Tensor]:
        """Yield features (b, v, d) of the images ``indices`` (n,), rising, of ``source``, of which all are embedded by
        all ranks: every rank must call.

        Raises:
            UserError: an embedding is not finite, or a file is damaged.
        """
        folder = self.cache / self._common_key(source, landmarks)
        folder.mkdir(parents=True, exist_ok=True)
        pieces = split(len(source), rows_a_file(len(source)), folder)
        if self.world.main:
            present = {entry.name for entry in os.scandir(folder)}
            there = sum(len(part) for path, part in pieces if path.name in present)
            say(f"{there} of {len(source)} embeddings are in {folder}")
        embed_missing(
            pieces, lambda wanted: Embedder.batches(self, source, wanted, landmarks), self.world, source.describe
        )
        for path, part in pieces:
            chosen = indices[(indices >= part[0]) & (indices <= part[-1])]
            if len(chosen):
                yield torch.from_numpy(_read(path, len(part))[chosen - part[0]]).to(self.world.device)

    def _common_key(self, source: Source, landmarks: Landmarks) -> str:
        """The `_key`, for which the first rank reads all images, and not each one all of them."""
        key = [self._key(source, landmarks) if self.world.main else ""]
        if self.world.size > 1:
            dist.broadcast_object_list(key, 0, device=self.world.device)
        return key[0]

    def _key(self, source: Source, landmarks: Landmarks) -> str:
        digest = hashlib.sha256(f"{self.digest} {self.flip} {self.autocast}{' aligned' * self.aligned}".encode())
        parts: Iterable[np.ndarray] = np.split(np.arange(len(source)), range(_READ, len(source), _READ))
        for some in with_progress(parts, "looking up images", len(source)) if self.show else parts:
            for image in source.read(some)[0]:
                digest.update(len(image).to_bytes(8, "little"))
                digest.update(image.tobytes())
            if self.aligned or getattr(self.model, "wants_landmarks", False):
                digest.update(landmarks(some).tobytes())
        return digest.hexdigest()[:16]


def _read(path: Path, rows: int) -> np.ndarray:
    try:
        piece = load_array(path)
    except UserError:
        piece = np.empty(0)
    if piece.ndim != 3 or len(piece) != rows or piece.dtype != np.float32:
        raise UserError(f"{path} is damaged, or no file of embeddings: remove it, and it is made anew")
    return piece
