"""Sums of embeddings by what images belong to: of millions of video frames no embedding is kept."""

import numpy as np
import torch
import torch.distributed as dist

from evaluate.features.embed import Embedder, equal_share
from evaluate.protocols.embeddings import finite, normalised
from pipelines.loading.landmarks import Landmarks, template_landmarks
from pipelines.sources.source import Source


def embedding_sums(
    embed: Embedder,
    source: Source,
    group: np.ndarray,
    groups: int,
    norm: str,
    landmarks: Landmarks = template_landmarks,
) -> np.ndarray:
    """Sums float64 (groups, d) of the embeddings of all images of ``source``, by ``group`` int64 (n,).

    Each rank embeds a share and receives all sums, so every rank must call. An image's embedding is the sum of its
    views; ``norm`` is one of `evaluate.protocols.templates.NORMS`: whether its length is kept.
    """
    count, world = len(source), embed.world
    share = equal_share(count, world)
    indices = share.clip(max=count - 1)
    of = np.where(share < count, group[indices], groups)  # what is repeated goes into a last row
    sums: torch.Tensor | None = None
    done = 0
    for batch in embed.batches(source, indices, landmarks):
        vectors = batch.sum(dim=1).cpu().numpy().astype(np.float64)
        part = slice(done, done + len(vectors))
        finite(vectors, "the network's embeddings", lambda row: source.describe(int(indices[part][row])))  # noqa: B023
        if norm == "normalise":
            vectors = normalised(vectors)
        if sums is None:
            sums = torch.zeros(groups + 1, vectors.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(of[part]), torch.from_numpy(vectors))
        done = part.stop
    assert sums is not None  # there are images
    if world.size > 1:
        sums = sums.to(world.device)
        dist.all_reduce(sums)
    return sums[:groups].cpu().numpy()
