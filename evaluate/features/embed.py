"""Embeddings of a model for the images of a source: original and mirrored image in one pass, spread over all ranks."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evaluate.protocols.embeddings import finite, one_row_an_image
from models.modes import evaluating
from pipelines.common.errors import UserError
from pipelines.loading.loader import read_once
from pipelines.sources.source import Source


def embed_batches(
    model: nn.Module, batches: Iterable[Tensor], *, flip: bool = True, autocast: torch.dtype | None = None
) -> Iterator[Tensor]:
    """Yield float32 features (b, v, d) of batches of images (b, 3, h, w) in [-1, 1], on the images' device.

    v is 2 (original, mirrored), or 1 without ``flip``. Raises ``ValueError`` where the network does not give one row an
    image; whether the rows are finite is left to who takes them from the device.
    """
    with evaluating(model):
        for images in batches:
            views = torch.cat([images, images.flip(3)]) if flip else images
            with torch.inference_mode(), torch.autocast(views.device.type, autocast, enabled=autocast is not None):
                features = one_row_an_image(model(views), len(views))
            yield features.unflatten(0, (-1, len(images))).transpose(0, 1)


def embed(
    model: nn.Module,
    source: Source,
    *,
    device: torch.device | str,
    batch_size: int,
    image_size: int = 112,
    flip: bool = True,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 2,
    autocast: torch.dtype | None = None,
) -> np.ndarray:
    """Features of all images of ``source``: float32 (n, 2, d), original then mirrored; (n, 1, d) without ``flip``.

    Each rank embeds a contiguous share and receives all of it, so every rank must call. ``model`` is the bare module
    (a DDP wrapper would synchronise its buffers). ``autocast`` is the dtype to compute in, say ``torch.bfloat16``.
    Raises ``ValueError`` for embeddings that are not finite.
    """
    count = len(source)
    if count == 0:
        raise UserError("there are no images to embed: is the set empty?")
    share = -(-count // world_size)
    # Equal shares, so that the gathered shapes agree: the last ranks repeat the last image, which is cut off again.
    indices = np.minimum(np.arange(rank * share, (rank + 1) * share), count - 1)
    batches = read_once(
        source,
        indices,
        batch_size=min(batch_size, share),
        image_size=image_size,
        device=device,
        dtype=torch.float32,
        threads=threads,
    )
    images = (batch.images for batch in batches)
    features = torch.cat(list(embed_batches(model, images, flip=flip, autocast=autocast)))
    if world_size > 1:
        shares = [torch.empty_like(features) for _ in range(world_size)]
        dist.all_gather(shares, features)
        features = torch.cat(shares)
    return finite(features[:count].cpu().numpy(), "the network's embeddings", source.describe)
