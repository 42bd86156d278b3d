"""Embeddings of a model for the images of a source: original and mirrored image in one pass, spread over all ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from evaluate.features.ranks import World
from evaluate.protocols.embeddings import finite, one_row_an_image
from models.modes import evaluating
from pipelines.common.errors import UserError
from pipelines.common.progress import with_progress
from pipelines.common.transfers import HostCopy
from pipelines.loading.aligned import read_aligned
from pipelines.loading.landmarks import Landmarks, mirrored, template_landmarks
from pipelines.loading.loader import read_once
from pipelines.sources.source import Source

_AT_A_TIME = 16  # views for each thread of a CPU, so that what passes between layers stays in its cache
_GATHERED = 4096  # images of each rank that ranks exchange at a time


def embed_batches(
    model: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    flip: bool = True,
    autocast: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield float32 features (b, v, d) of batches of images (b, 3, h, w) in [-1, 1], on the images' device.

    v is 2 (original, mirrored), or 1 without ``flip``. Landmarks (b, 5, 2) may come beside the images: a network that
    ``wants_landmarks`` gets them, else the template's, mirror images mirrored ones. The network sees one shape: a batch
    that is shorter than one before it is filled up, for a new shape may be compiled for, and its convolutions timed. A
    CPU takes a part of a batch at a time, unless the network ``splits_batches`` itself.
    Raises ``ValueError`` where the network does not give one row an image; whether the rows are finite is left to who
    takes them from the device.
    """
    size = 0
    with evaluating(model):
        for batch in batches:
            images, *landmarks = (batch,) if isinstance(batch, Tensor) else batch
            in_parts = images.device.type == "cpu" and not getattr(model, "splits_batches", False)
            count, size = len(images), max(size, len(images))
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - count))
            views = torch.cat([images, images.flip(3)]) if flip else images
            places = _places(landmarks, size, flip, images.device) if getattr(model, "wants_landmarks", False) else ()
            at_a_time = _AT_A_TIME * torch.get_num_threads() if in_parts else len(views)
            parts = zip(*(values.split(at_a_time) for values in (views, *places)))
            with torch.inference_mode(), torch.autocast(views.device.type, autocast, enabled=autocast is not None):
                features = torch.cat([one_row_an_image(model(*part), len(part[0])) for part in parts])
            yield features.unflatten(0, (-1, size))[:, :count].transpose(0, 1)


def _places(landmarks: Sequence[Tensor], size: int, flip: bool, device: torch.device) -> tuple[Tensor, ...]:
    """The landmarks of ``size`` images and, with ``flip``, their mirror images."""
    given = landmarks[0] if landmarks else torch.from_numpy(template_landmarks(np.arange(size))).to(device)
    given = F.pad(given, (0, 0, 0, 0, 0, size - len(given)))
    return (torch.cat([given, mirrored(given)]) if flip else given,)


def equal_share(count: int, world: World) -> np.ndarray:
    """This rank's share of ``count`` images, int64 (s,), one behind another; s is the same on all ranks.

    So what is gathered has one shape everywhere; numbers from ``count`` on are no images. Raises ``UserError`` where
    there are none at all.
    """
    if count == 0:
        raise UserError("there are no images to embed: is the set empty?")
    share = -(-count // world.size)
    return np.arange(world.rank * share, (world.rank + 1) * share)


@dataclass(frozen=True)
class Embedder:
    """Features of a source's images by a model, on this process or shared among all ranks.

    Attributes:
        model: the bare module (a DDP wrapper would synchronise its buffers).
        image_size: the side of the images that it takes, in pixels.
        world: this process's place.
        batch_size, threads: images at a time, and decoding threads, of each rank.
        autocast: the dtype to compute in, say ``torch.bfloat16``.
        flip: whether the mirrored image is embedded, too.
        show: whether the main rank shows how far it is.
        aligned: whether images are loose crops that their landmarks, in pixels, align; else they are aligned faces.
        digest: of the network, by which what is kept of its embeddings is known (`Network.digest`).
    """

    model: nn.Module
    image_size: int
    world: World
    batch_size: int = 128
    threads: int = 4
    autocast: torch.dtype | None = None
    flip: bool = True
    show: bool = False
    aligned: bool = False
    digest: str = ""

    def batches(
        self, source: Source, indices: np.ndarray, landmarks: Landmarks = template_landmarks
    ) -> Iterator[Tensor]:
        """Yield what `embed_batches` does for the images ``indices`` (n,) of ``source``, on this rank alone."""
        read = read_aligned if self.aligned else read_once
        batches = read(
            source,
            indices,
            batch_size=min(self.batch_size, len(indices)),
            image_size=self.image_size,
            device=self.world.device,
            threads=self.threads,
            landmarks=landmarks,
        )
        inputs = (batch.inputs for batch in batches)
        features = embed_batches(self.model, inputs, flip=self.flip, autocast=self.autocast)
        return with_progress(features, "embedding", len(indices)) if self.show and self.world.main else features

    def __call__(self, source: Source, landmarks: Landmarks = template_landmarks) -> np.ndarray:
        """Features of all images of ``source``: float32 (n, 2, d), original then mirrored; (n, 1, d) without ``flip``.

        Each rank embeds a contiguous share and receives all of it, so every rank must call. Raises ``ValueError`` for
        embeddings that are not finite.
        """
        count, world = len(source), self.world
        share = equal_share(count, world)
        features, done = np.empty(0, np.float32), 0
        # The last ranks repeat the last image, which is cut off again. Nothing is kept on the device: all is too much.
        for batch in _on_host(self.batches(source, share.clip(max=count - 1), landmarks)):
            if not done:
                features = np.empty((world.size * len(share), *batch.shape[1:]), np.float32)
            features[share[done : done + len(batch)]] = batch
            done += len(batch)
        if world.size > 1:
            _gather(features.reshape(world.size, len(share), *features.shape[1:]), world)
        return finite(features[:count], "the network's embeddings", source.describe)


def _on_host(batches: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The numbers of each batch, which are copied while the device has the next one."""
    before: HostCopy | None = None
    for batch in batches:
        copy = HostCopy(batch)
        if before:
            yield before.result().numpy()
        before = copy
    if before:
        yield before.result().numpy()


def _gather(shares: np.ndarray, world: World) -> None:
    """Fill in all ranks' ``shares`` (ranks, s, v, d), of which this rank has its own, some at a time."""
    for start in range(0, shares.shape[1], _GATHERED):
        part = slice(start, start + _GATHERED)
        own = torch.from_numpy(shares[world.rank, part]).to(world.device)
        parts = [torch.empty_like(own) for _ in range(world.size)]
        dist.all_gather(parts, own)
        for rank, found in enumerate(parts):
            shares[rank, part] = found.cpu().numpy()
