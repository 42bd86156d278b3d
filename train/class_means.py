"""Class centres from the images: the mean embedding of each class by the network that a run begins with."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evaluate.features.ranks import World
from evaluate.features.readable import embed_readable
from losses import PartialFC
from pipelines.common.errors import UserError
from pipelines.common.progress import with_progress
from pipelines.loading.landmarks import Landmarks
from pipelines.sources.source import Source

IMAGES = 16  # of a class, its first: their mean is close to that of all
_BATCH = 64  # images that are embedded at a time
_BLOCK = 1 << 20  # labels that are looked at at a time


def set_class_means(
    head: PartialFC,
    backbone: nn.Module,
    source: Source,
    world: World,
    *,
    first: int,
    image_size: int,
    threads: int,
    autocast: torch.dtype | None,
    max_bad_fraction: float,
    landmarks: Landmarks | None = None,
) -> None:
    """Point the centres of the classes from ``first`` on where the embeddings of their images point on average.

    Each rank makes those that it holds. An embedding counts with length 1, and so does that of the mirrored image; both
    are of the image without augmentation, by the network in evaluation mode. The centres keep the lengths they
    have, and that of a class without images that can be read stays as it is.

    Args:
        threads: of the decoding.
        autocast: the dtype to compute in.
        max_bad_fraction: of the images that cannot be read or decoded; more are a ``UserError``.
        landmarks: of the images, for a network that wants some.

    Raises:
        UserError: an embedding is not finite.
    """
    indices, labels = _chosen(source, max(first, head.start), head.stop)
    if len(indices):
        sums = torch.zeros(head.weight.shape)  # on the host, where the order of summation is one's own
        size = min(_BATCH, len(indices))
        features, bad_images = embed_readable(
            backbone,
            source,
            np.split(indices, range(size, len(indices), size)),
            image_size=image_size,
            device=world.device,
            threads=threads,
            autocast=autocast,
            max_bad_fraction=max_bad_fraction,
            landmarks=landmarks,
        )
        if world.main:
            features = with_progress(features, "class means", len(indices))
        for number, found in enumerate(features):
            part = slice(number * size, number * size + len(found))
            sound = torch.tensor([int(index) not in bad_images for index in indices[part]])
            rows = torch.from_numpy(labels[part] - head.start)
            sums.index_add_(0, rows[sound], F.normalize(found.cpu(), dim=2).sum(1)[sound])
        if not sums.isfinite().all():
            raise UserError("the embeddings of the network that the run begins with are not finite: is its file whole?")
        with torch.no_grad():
            means = F.normalize(sums).to(head.weight.device)
            lengths = head.weight.norm(dim=1, keepdim=True)
            head.weight.copy_(torch.where(means.any(1, keepdim=True), means * lengths, head.weight))
    world.barrier()


def _chosen(source: Source, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class in [first, stop) by index, and their labels, both int64 (n,), in that order."""
    found: list[np.ndarray] = []
    for begin in range(0, len(source), _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, len(source)))
        labels = source.labels(block)
        inside = (labels >= first) & (labels < stop)
        found.append(np.stack([block[inside], labels[inside]]))
    indices, labels = np.concatenate(found, axis=1)
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the class
    kept = np.sort(order[place < IMAGES])
    return indices[kept], labels[kept]
