"""A batch before its images are decoded, and as networks take it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipelines.common.pixels import normalise
from pipelines.common.transfers import to_device

FLIP = "flip"  # the decoder's parameter, 0 or 1, that says which images are mirrored


@dataclass
class Batch:
    images: Tensor  # (b, 3, h, w), RGB in [-1, 1], channels-last, on the device
    labels: Tensor  # int64 (b,), on the device
    indices: Tensor  # int64 (b,), the samples' indices in the source, on the CPU
    uniforms: Tensor  # float32 (b, num_uniforms), random in [0, 1), on the CPU: for margins and recipes
    clean: Tensor | None = None  # with ``clean_view``: the images before augmentation, mirrored like them
    mirrored: Tensor | None = None  # bool (b,), on the CPU: which images are; None where none is
    landmarks: Tensor | None = None  # float32 (b, 5, 2), on the device, where the loader is told of some

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network takes: the images, and landmarks if there are some."""
        return (self.images,) if self.landmarks is None else (self.images, self.landmarks)


@dataclass
class EncodedBatch:
    encoded: list[np.ndarray]  # uint8 (bytes,)
    labels: np.ndarray  # int64 (b,)
    indices: np.ndarray  # int64 (b,)
    uniforms: np.ndarray  # float32 (b, num_uniforms), as in ``Batch``
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the decoder
    step: int = 0  # what it is the batch of
    landmarks: np.ndarray | None = None  # float32 (b, 5, 2), of the images as they come out

    def with_images(self, pixels: tuple[Tensor, ...], dtype: torch.dtype) -> Batch:
        """The batch with the decoder's ``pixels``, uint8 (b, h, w, 3), and its clean view."""
        images, *clean = (_to_images(view, dtype) for view in pixels)
        flips = self.parameters.get(FLIP)
        return Batch(
            images=images,
            labels=to_device(torch.from_numpy(self.labels), images.device),
            indices=torch.tensor(self.indices),
            uniforms=torch.from_numpy(self.uniforms),
            clean=clean[0] if clean else None,
            mirrored=None if flips is None else torch.from_numpy(flips.astype(bool)),
            landmarks=None if self.landmarks is None else to_device(torch.from_numpy(self.landmarks), images.device),
        )


def _to_images(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (b, h, w, 3) → images as in ``Batch``."""
    images = pixels.permute(0, 3, 1, 2)
    return images if dtype == torch.uint8 else normalise(images, dtype)
