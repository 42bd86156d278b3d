"""A teacher's embeddings for a batch: of the batch's own images, or made before of the images as they are."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.features.embed import embed_batches
from evaluate.features.network import Network
from evaluate.features.store import EmbeddingStore, store_key
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.common.transfers import to_device
from pipelines.loading.loader import Batch
from train.recipes.recipe import Run


class Teacher(Protocol):
    """Gives unit embeddings float32 (b, ``dimension``) of a batch, without gradient, on its device."""

    dimension: int

    def __call__(self, batch: Batch) -> Tensor: ...


class PresentTeacher:
    """The network itself, on the images that the student sees: augmented, and resized where it takes others.

    Raises ``UserError`` for a network whose embeddings are not finite.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._model, self._size = network.model.requires_grad_(False), network.input_size
        (found,) = embed_batches(self._model, [torch.zeros(2, 3, self._size, self._size, device=device)])
        if not found.isfinite().all():
            raise UserError("the teacher's embeddings are not finite: is its file whole?")
        self.dimension = found.shape[2]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        images = batch.images
        if images.shape[-1] != self._size:  # to more pixels bilinearly, to fewer ones by all that fall into one
            images = F.interpolate(images, (self._size, self._size), mode="bilinear", antialias=True)
        landmarks = batch.inputs[1:] if getattr(self._model, "wants_landmarks", False) else ()
        return F.normalize(self._model(images, *landmarks).float())


class StoredTeacher:
    """Its embeddings of the images before augmentation, at its own size, mirrored as the batch's are."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store, self.dimension = store, store.dimension

    def __call__(self, batch: Batch) -> Tensor:
        indices = batch.indices.numpy()
        mirrored = np.zeros(len(indices), bool) if batch.mirrored is None else batch.mirrored.numpy()
        return to_device(torch.from_numpy(self._store.read(indices, mirrored)), batch.images.device)


def stored_teacher(network: Network, cache: Path, run: Run) -> StoredTeacher:
    """The embeddings of all images of the run's data in a folder below ``cache``, which are made where they are not
    there; all ranks call."""
    landmarks = run.landmarks if getattr(network.model, "wants_landmarks", False) else None
    store = EmbeddingStore(cache / store_key(network, run.source, landmarks, run.autocast), len(run.source))
    if run.world.main:
        say(f"the teacher's embeddings of {store.count} images: {store.folder}")
    store.fill(
        network,
        run.source,
        run.world,
        threads=run.threads,
        autocast=run.autocast,
        max_bad_fraction=run.max_bad_fraction,
        landmarks=landmarks,
    )
    return StoredTeacher(store)
