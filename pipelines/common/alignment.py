"""The template that faces are aligned to, the similarity that takes landmarks there, and its matrices.

Points are complex, x + iy.
"""

import numpy as np

SIZE = 112
# Eyes, tip of the nose and corners of the mouth, what is left in the image first; pixel centres at whole numbers.
TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)
_CORNER = -0.5 - 0.5j  # of an image whose first pixel has its centre at 0


def template(size: int) -> np.ndarray:
    """The template in an image of ``size`` x ``size`` pixels, complex (5,): scaled about the corner of the image."""
    return (TEMPLATE - _CORNER) * (size / SIZE) + _CORNER


def similarity(landmarks: np.ndarray, target: np.ndarray = TEMPLATE) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares similarities z -> scale z + shift from landmarks, complex (..., k), to ``target``, (k,).

    Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns" (1991), eq. 40-43: in
    the plane, with points as complex numbers, a linear regression. Returns complex128 scale and shift (...), which
    `sound` judges.
    """
    landmarks = landmarks.astype(np.complex128)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = landmarks - landmarks.mean(-1, keepdims=True)
        scale = (centred.conj() * (target - target.mean())).sum(-1) / np.square(np.abs(centred)).sum(-1)
        return scale, target.mean() - scale * landmarks.mean(-1)


def sound(scale: np.ndarray) -> np.ndarray:
    """Whether landmarks have a similarity, by its scale: those in one point, or not finite, have none."""
    return (abs(scale) > 0) & (abs(scale) < np.inf)


def matrix(scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """z -> scale z + shift, complex (...), as matrices of (x, y, 1): float64 (..., 2, 3)."""
    rows = (scale.real, -scale.imag, shift.real), (scale.imag, scale.real, shift.imag)
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def sampling_matrix(scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What Pillow and DALI want in order to warp an image by z -> scale z + shift: float64 (..., 2, 3).

    That is the way back, from places in the new image to the old one, and in coordinates whose origin is the corner of
    the first pixel.
    """
    back = 1 / scale
    return matrix(back, back * (_CORNER - shift) - _CORNER)


def relative_template() -> np.ndarray:
    """The template as a part of the image's sides, float32 (5, 2): (x, y) from its corner, (0, 0), to (1, 1)."""
    return relative(TEMPLATE, SIZE)


def complex_points(points: np.ndarray) -> np.ndarray:
    """Points (..., 2), (x, y), as complex (...)."""
    return points[..., 0] + 1j * points[..., 1]


def relative(points: np.ndarray, size: int) -> np.ndarray:
    """Points, complex (...), in an image of ``size`` x ``size`` pixels as parts of its sides, float32 (..., 2)."""
    points = (points - _CORNER) / size
    return np.stack([points.real, points.imag], axis=-1).astype(np.float32)
