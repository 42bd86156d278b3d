"""Five landmarks beside each image: eyes, tip of the nose, corners of the mouth, what is left in the image first.

They are (x, y) as parts of the image's sides, float32 (b, 5, 2): (0, 0) is the corner of its first pixel.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from pipelines.common.alignment import relative_template
from pipelines.common.errors import UserError
from pipelines.sources.rows import RowFile

Landmarks = Callable[[np.ndarray], np.ndarray]  # indices int64 (b,) → landmarks float32 (b, 5, 2)

_MIRRORED = [1, 0, 2, 4, 3]  # left and right change places


def template_landmarks(indices: np.ndarray) -> np.ndarray:
    """Those of the template for every image, as in aligned faces."""
    return np.tile(relative_template(), (len(indices), 1, 1))


def mirrored(landmarks: Tensor) -> Tensor:
    """The landmarks (b, 5, 2) of the mirror images."""
    return (landmarks * landmarks.new_tensor([-1, 1]) + landmarks.new_tensor([1, 0]))[:, _MIRRORED]


def landmarks_beside(path: Path, count: int) -> Landmarks:
    """Those of the ``count`` images of ``lfw.bin``, say, in ``lfw.landmarks.npy`` beside it; else the template's."""
    file = path.with_suffix(".landmarks.npy")
    return LandmarkFile(file, count) if file.exists() else template_landmarks


class LandmarkFile:
    """Landmarks in a ``.npy`` file, float32 (count, 5, 2), a row an image of the source; rows are read by offset.

    Raises:
        UserError: the file is none of that kind, or for another number of images.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        try:
            self._rows = RowFile(path)
        except ValueError:
            raise UserError(
                f"{path} is no .npy file of landmarks: write float32 (images, 5, 2) by numpy.save"
            ) from None
        shape, dtype = self._rows.shape, self._rows.dtype
        if shape != (count, 5, 2) or not self._rows.in_rows or dtype != np.dtype("<f4"):
            raise UserError(f"{path} holds {dtype} {shape}; landmarks of this data set are float32 ({count}, 5, 2)")

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        landmarks = np.stack([self._rows.read(int(index)) for index in indices])
        sound = np.isfinite(landmarks).all(axis=(1, 2))
        if not sound.all():
            raise UserError(f"{self._path}: the landmarks of image {indices[~sound][0]} are not finite")
        return landmarks
