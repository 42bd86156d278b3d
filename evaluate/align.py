"""Aligned faces from loose crops: the similarity of five landmarks to the usual template, warped by DALI."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from pipelines.template import TEMPLATE, similarity


def transforms(landmarks: np.ndarray, image_size: int = 112) -> np.ndarray:
    """The similarities that take landmarks (n, 5, 2) to the template at ``image_size``: float64 (n, 2, 3)."""
    # The template's coordinates are pixel centres, so another size scales them about the corner at (-0.5, -0.5).
    target = (TEMPLATE + (0.5 + 0.5j)) * (image_size / 112) - (0.5 + 0.5j)
    a, b = similarity(landmarks[..., 0] + 1j * landmarks[..., 1], target)
    if not np.isfinite(a).all():
        bad = int(np.argmin(np.isfinite(a)))
        raise ValueError(f"the landmarks of image {bad} all lie in one point, or are not finite")
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
    Raises ValueError for an image that cannot be decoded.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    matrices = sampling_matrix(transforms(landmarks, image_size))
    in_flight: list[np.ndarray] = []

    def feed() -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        for indices in batches:
            in_flight.append(indices)
            yield [np.fromfile(paths[i], np.uint8) for i in indices], matrices[indices]

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device.index or 0 if on_gpu else None)
    def graph() -> DataNode:
        encoded, matrix = fn.external_source(feed, num_outputs=2, batch=True, dtype=[types.UINT8, types.FLOAT])
        images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        return fn.warp_affine(images, matrix=matrix, size=(image_size, image_size), fill_value=0)

    pipeline = graph()
    pipeline.build()
    while True:
        try:
            (out,) = pipeline.run(torch.cuda.current_stream(device) if on_gpu else None)
        except StopIteration:
            return
        except RuntimeError as error:
            raise ValueError(_culprit(paths, in_flight[0])) from error
        pixels = torch.from_dlpack(out.as_tensor()).to(device)
        in_flight.pop(0)
        yield pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _culprit(paths: Sequence[Path], indices: np.ndarray) -> str:
    """Which image of a batch that failed is to blame."""
    from PIL import Image

    for i in indices:
        try:
            with Image.open(paths[i]) as image:
                image.convert("RGB")
        except Exception as error:
            return f"{paths[i]} cannot be decoded: {error}"
    return f"one of the images from {paths[indices[0]]} to {paths[indices[-1]]} cannot be decoded"
