"""Photographs cropped to the template of face recognition, 112 x 112, by five landmarks: listed, or detected."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pipelines.common.alignment import SIZE, complex_points, relative, sampling_matrix, similarity, sound
from pipelines.common.errors import UserError
from pipelines.common.pillow import QUALITY, decode, to_jpeg
from pipelines.sources.identities import number_names
from pipelines.sources.lists import ListSource

_SURE = 0.6  # least score of a detected face
_SIDE = 640  # pixels of the image that is searched: YuNet is trained for faces of 10 to 300, and misplaces larger ones

Landmarks = Callable[[int, Image.Image], np.ndarray]  # (index, photograph) -> complex (5,), x + iy in pixels


@dataclass(frozen=True)
class Align:
    """The crop of an image in which ``landmarks`` are at the template's places, as JPEG of ``quality``.

    Landmarks are in the order of the template. What lies outside of the photograph is black. Where the landmarks come
    to lie in the crop, as parts of its sides, is put into its row of ``aligned``, float32 (photographs, 5, 2).
    """

    landmarks: Landmarks = field(repr=False)
    quality: int = QUALITY
    aligned: np.ndarray | None = field(default=None, repr=False)

    def __call__(self, index: int, encoded: bytes) -> bytes:
        photograph = decode(encoded)
        points = self.landmarks(index, photograph)
        scale, shift = similarity(points)
        if not sound(scale):
            raise UserError("the landmarks are not those of a face: they lie in one point, or are no numbers")
        if self.aligned is not None:
            self.aligned[index] = relative(scale * points + shift, SIZE)
        coefficients = sampling_matrix(scale, shift).ravel().tolist()
        crop = photograph.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
        )
        return to_jpeg(crop, self.quality)


def read_landmarks(path: Path) -> tuple[ListSource, Landmarks]:
    """The photographs and landmarks of a file with lines ``path x1 y1 x2 y2 x3 y3 x4 y4 x5 y5``.

    Relative paths are taken from the file's folder. A photograph's folder, which a path has to name, is its identity.
    """
    paths, names, points = [], [], []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:  # file names may be in any encoding
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                image, *numbers = line.strip().rsplit(maxsplit=10)
                values = np.array(numbers, np.float64).reshape(5, 2)
                if not np.isfinite(values).all():
                    raise ValueError
            except ValueError:
                raise UserError(f"{path}, line {number} is not 'path x1 y1 … x5 y5': '{line.strip()[:80]}'") from None
            identity = Path(image).parent.name
            if identity in ("", ".."):
                raise UserError(f"{path}, line {number}: '{image[:80]}' has no identity: write 'identity/image.jpg'")
            paths.append(str(path.parent / image))
            names.append(identity)
            points.append(complex_points(values))
    if not paths:
        raise UserError(f"{path} lists no landmarks")
    return ListSource(paths, *number_names(names)), lambda index, photograph: points[index]


def detector(weights: Path) -> Landmarks:
    """Finds the landmarks of the largest face by YuNet: OpenCV's detector, whose weights are an ONNX file.

    A large photograph is searched at 640 pixels, and at its own size only where no face is found so.

    Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (2023).
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # read at import; OpenCV 5 warns at each image
    try:
        import cv2
    except ImportError:
        raise UserError("detecting faces needs a package: pip install opencv-python-headless") from None
    if not weights.is_file():
        raise FileNotFoundError(f"there are no weights at {weights}: give the .onnx file of OpenCV's YuNet")

    def network(size: tuple[int, int]) -> Any:
        return cv2.FaceDetectorYN.create(str(weights), "", size, _SURE)

    try:  # another network fails only where it is run
        network((SIZE, SIZE)).detect(np.zeros((SIZE, SIZE, 3), np.uint8))
    except cv2.error:
        raise UserError(f"OpenCV cannot read {weights}: give the .onnx file of its detector YuNet") from None

    def faces_in(image: Image.Image) -> np.ndarray | None:
        own = network(image.size)  # not to be shared by threads
        return own.detect(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))[1]  # OpenCV has BGR

    def find(index: int, photograph: Image.Image) -> np.ndarray:
        searched = photograph
        if max(photograph.size) > _SIDE:
            searched = ImageOps.contain(photograph, (_SIDE, _SIDE))
        faces = faces_in(searched)
        if faces is None and searched is not photograph:
            searched, faces = photograph, faces_in(photograph)
        if faces is None:
            raise UserError("no face is found in it")
        largest = max(faces, key=lambda face: face[2] * face[3])  # x, y, width, height, five landmarks, score
        return complex_points(largest[4:14].reshape(5, 2) * np.divide(photograph.size, searched.size))

    return find
