"""Embeddings of images of which some cannot be read."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evaluate.features.embed import embed_batches
from pipelines.loading.decoder import Decoder
from pipelines.loading.landmarks import Landmarks
from pipelines.loading.loader import read_batches
from pipelines.loading.quarantine import Quarantine
from pipelines.sources.source import Source


def embed_readable(
    model: nn.Module,
    source: Source,
    batches: Sequence[np.ndarray],
    *,
    image_size: int,
    device: torch.device,
    threads: int,
    autocast: torch.dtype | None,
    max_bad_fraction: float,
    landmarks: Landmarks | None = None,
) -> tuple[Iterator[Tensor], Quarantine]:
    """What `embed_batches` yields for batches of indices int64 (b,), and the images that could not be read so far.

    The features of the latter mean nothing.

    Args:
        threads: of the decoding.
        autocast: the dtype to compute in.
        max_bad_fraction: of the images that cannot be read or decoded; more are a ``ValueError``.
        landmarks: of the images, for a network that wants some; by default it takes the template's.
    """
    bad_images = Quarantine(source, max_fraction=max_bad_fraction, path=None)
    decoder = Decoder(batch_size=max(map(len, batches)), image_size=image_size, device=device, threads=threads)

    def on_bad(index: int, reason: str) -> None:
        bad_images.add(index, reason, 0)

    read = read_batches(source, iter(batches), decoder, on_bad=on_bad, landmarks=landmarks)
    return embed_batches(model, (batch.inputs for batch in read), autocast=autocast), bad_images
