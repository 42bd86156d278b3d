"""Aligned faces from loose crops: the similarity of five landmarks to the usual template, warped by DALI."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from torch import Tensor

from pipelines.common.alignment import TEMPLATE, similarity
from pipelines.common.errors import UserError
from pipelines.loading.decoder import Decoder
from pipelines.loading.loader import read_batches
from pipelines.sources.lists import ListSource


def transforms(landmarks: np.ndarray, image_size: int = 112) -> np.ndarray:
    """The similarities that take landmarks (n, 5, 2) to the template at ``image_size``: float64 (n, 2, 3)."""
    # The template's coordinates are pixel centres, so another size scales them about the corner at (-0.5, -0.5).
    target = (TEMPLATE + (0.5 + 0.5j)) * (image_size / 112) - (0.5 + 0.5j)
    a, b = similarity(landmarks[..., 0] + 1j * landmarks[..., 1], target)
    if not np.isfinite(a).all():
        bad = int(np.argmin(np.isfinite(a)))
        raise UserError(f"the landmarks of image {bad} all lie in one point, or are not finite")
    return np.stack([np.stack([a.real, -a.imag, b.real], 1), np.stack([a.imag, a.real, b.imag], 1)], axis=1)


def sampling_matrix(matrix: np.ndarray) -> np.ndarray:
    """For forward transforms (n, 2, 3) between pixel centres at integers, DALI's ``matrix``: float32 (n, 2, 3).

    That one maps the output to the input, in coordinates where the first pixel's centre is at (0.5, 0.5).
    """
    linear = np.linalg.inv(matrix[:, :, :2])
    offset = -linear @ matrix[:, :, 2:]
    half = np.full((2, 1), 0.5)
    return np.concatenate([linear, offset + half - linear @ half], axis=2).astype(np.float32)


def aligned_images(
    paths: Sequence[Path],
    landmarks: np.ndarray,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    image_size: int = 112,
    device: torch.device | str,
    threads: int = 4,
) -> Iterator[Tensor]:
    """Yield float32 images (b, 3, image_size, image_size), RGB in [-1, 1], for each array of indices in ``batches``.

    ``paths`` are n image files, ``landmarks`` (n, 5, 2) in their pixels; a batch holds at most ``batch_size`` indices.
    Raises ``ValueError`` or ``OSError`` for an image that cannot be read or decoded.
    """
    matrices = sampling_matrix(transforms(landmarks, image_size))
    decoder = Decoder(
        batch_size=batch_size,
        image_size=image_size,
        device=torch.device(device),
        threads=threads,
        transform=_warp,
        parameters=("matrix",),
        any_size=True,
    )
    aligned = read_batches(
        ListSource([str(path) for path in paths]),
        batches,
        decoder,
        parameters=lambda indices: {"matrix": matrices[indices]},
    )
    return (batch.images for batch in aligned)


def _warp(images: DataNode, image_size: int, *, matrix: DataNode) -> DataNode:
    return fn.warp_affine(images, matrix=matrix, size=(image_size, image_size), fill_value=0)
