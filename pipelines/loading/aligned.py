"""Aligned faces from loose crops: the similarity of five landmarks to the usual template, warped by DALI."""

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode

from pipelines.common.alignment import SIZE, complex_points, relative, sampling_matrix, similarity, sound, template
from pipelines.common.errors import UserError
from pipelines.loading.decoder import Decoder
from pipelines.loading.landmarks import Landmarks
from pipelines.loading.loader import Batch, read_batches
from pipelines.sources.source import Source


def sampling_matrices(landmarks: np.ndarray, image_size: int = SIZE) -> np.ndarray:
    """DALI's matrices that take landmarks (n, 5, 2) to the template at ``image_size``: float32 (n, 2, 3)."""
    return sampling_matrix(*_similarities(landmarks, image_size)).astype(np.float32)


def aligned_landmarks(landmarks: np.ndarray, image_size: int = SIZE) -> np.ndarray:
    """Where in the aligned images landmarks (n, 5, 2) come to lie: float32 (n, 5, 2), as parts of the sides."""
    scale, shift = _similarities(landmarks, image_size)
    return relative(scale[:, None] * complex_points(landmarks) + shift[:, None], image_size)


def _similarities(landmarks: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    scale, shift = similarity(complex_points(landmarks), template(image_size))
    if not sound(scale).all():
        raise UserError(f"the landmarks of image {sound(scale).argmin()} all lie in one point, or are not finite")
    return scale, shift


def read_aligned(
    source: Source,
    indices: np.ndarray,
    *,
    batch_size: int,
    image_size: int = SIZE,
    device: torch.device | str = "cpu",
    threads: int = 2,
    landmarks: Landmarks,
) -> Iterator[Batch]:
    """As `read_once`, of loose crops, which are aligned by their ``landmarks``, in pixels; batches carry where in the
    aligned images these are, float32 (b, 5, 2) as parts of the sides.

    Raises ``ValueError`` or ``OSError`` for an image that cannot be read or decoded.
    """
    decoder = Decoder(
        batch_size=batch_size,
        image_size=image_size,
        device=torch.device(device),
        threads=threads,
        transform=_warp,
        parameters=("matrix",),
        any_size=True,
    )
    return read_batches(
        source,
        (indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size)),
        decoder,
        parameters=lambda chosen: {"matrix": sampling_matrices(landmarks(chosen), image_size)},
        landmarks=lambda chosen: aligned_landmarks(landmarks(chosen), image_size),
    )


def _warp(images: DataNode, image_size: int, *, matrix: DataNode) -> DataNode:
    return fn.warp_affine(images, matrix=matrix, size=(image_size, image_size), fill_value=0)
