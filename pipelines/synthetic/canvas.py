"""A small analytic renderer for faces: a posed, five-point aligned dome to paint on and to light.

The face's own axes are x to the right of the image, y down and z towards the camera, with the origin in the middle of
the head; lengths are in pixels of the 112 x 112 template. A point of the face is turned by yaw and pitch, projected
along z, and brought into the image by the similarity that takes the face's five landmarks to the template, as is done
with photographs. Points and directions of the image are complex numbers x + iy.
"""

import math
from collections.abc import Sequence

import numpy as np

from pipelines.common.alignment import SIZE, TEMPLATE, similarity

DOME_X, DOME_Y, DOME_Z = 44.0, 62.0, 44.0  # half axes of the ellipsoid that carries the features
EVERYWHERE = 4.0 * SIZE  # a reach that covers the image
FORESHORTENING = 0.6  # of the dome's slope: faces are flatter at the features than the ellipsoid is


def colour(red: float, green: float, blue: float) -> np.ndarray:
    """A colour in [0, 1] as float32 (3, 1, 1), ready to blend."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def ramp(x: np.ndarray) -> np.ndarray:
    """``x`` clipped to [0, 1] (much faster than ``np.clip`` on small arrays)."""
    x = np.maximum(x, 0)
    return np.minimum(x, 1, out=x)


def glow(u: np.ndarray, v: np.ndarray | float, radius_u: float, radius_v: float) -> np.ndarray:
    """A Gaussian spot, 1 in its middle and 1/e at the radii."""
    return np.exp(-np.square(u * (1 / radius_u)) - np.square(v * (1 / radius_v)))


def disc(u: np.ndarray, v: np.ndarray, radius_u: float, radius_v: float) -> np.ndarray:
    """Anti-aliased coverage of an ellipse."""
    relative = np.sqrt(np.square(u * (1 / radius_u)) + np.square(v * (1 / radius_v)))
    return ramp(0.5 - (relative - 1) * min(radius_u, radius_v))


def band(v: np.ndarray, top: np.ndarray | float, bottom: np.ndarray | float) -> np.ndarray:
    """Anti-aliased coverage of what lies between the curves v = top and v = bottom."""
    return ramp(0.5 + np.minimum(v - top, bottom - v))


def inside(field: np.ndarray) -> np.ndarray:
    """Anti-aliased coverage of ``field`` < 0, a field sampled at pixels: its distance to zero is field / |gradient|."""
    by_row, by_column = np.gradient(field)
    return ramp(0.5 - field / np.sqrt(np.square(by_row) + np.square(by_column) + 1e-12))


class Patch:
    """A window of a canvas with local coordinates ``u``, ``v`` (h, w) in the face's axes around the patch's centre."""

    __slots__ = ("albedo", "cover", "height", "u", "v")

    def __init__(self, canvas: "Canvas", centre: complex, along_u: complex, along_v: complex, reach: float) -> None:
        x, y = centre.real, centre.imag
        x0, x1 = min(max(int(x - reach), 0), SIZE), min(max(int(x + reach) + 2, 0), SIZE)
        y0, y1 = min(max(int(y - reach), 0), SIZE), min(max(int(y + reach) + 2, 0), SIZE)
        self.albedo = canvas.albedo[:, y0:y1, x0:x1]
        self.cover = canvas.cover[y0:y1, x0:x1]
        self.height = canvas.height[y0:y1, x0:x1]
        dx = canvas.pixels[x0:x1] - x
        dy = canvas.pixels[y0:y1, None] - y
        # dx + i dy = u along_u + v along_v, solved for u and v
        area = (along_u.conjugate() * along_v).imag
        self.u = dx * (along_v.imag / area) - dy * (along_v.real / area)
        self.v = dy * (along_u.real / area) - dx * (along_u.imag / area)

    def paint(self, alpha: np.ndarray, colour: np.ndarray) -> None:
        """Blend ``colour`` (3, 1, 1) or (3, h, w) over the albedo."""
        self.albedo += alpha * (colour - self.albedo)

    def shade(self, alpha: np.ndarray) -> None:
        """Blend black over the albedo."""
        self.albedo *= 1 - alpha

    def tint(self, alpha: np.ndarray, change: np.ndarray) -> None:
        """Multiply the albedo by 1 + ``change`` (3, 1, 1) where ``alpha`` is 1."""
        self.albedo *= 1 + alpha * change

    def solid(self, alpha: np.ndarray, colour: np.ndarray) -> None:
        """Paint something that also hides the background."""
        self.paint(alpha, colour)
        np.maximum(self.cover, alpha, out=self.cover)


class Canvas:
    """One image while it is painted: albedo (3, 112, 112), cover of the background and height (112, 112), float32.

    ``landmarks`` are the five (x, y, lift over the dome); ``yaw`` and ``pitch`` are radians; ``misalignment`` is the
    detector's error, a complex factor about 1 and a shift in pixels.
    """

    def __init__(
        self,
        landmarks: Sequence[tuple[float, float, float]],
        yaw: float,
        pitch: float,
        misalignment: tuple[complex, complex],
    ) -> None:
        self.albedo = np.zeros((3, SIZE, SIZE), np.float32)
        self.cover = np.zeros((SIZE, SIZE), np.float32)
        self.height = np.zeros((SIZE, SIZE), np.float32)
        self.pixels = np.arange(SIZE, dtype=np.float32)
        # Where the face's axes point in the image, before the alignment.
        self.x_axis = complex(math.cos(yaw), math.sin(yaw) * math.sin(pitch))
        self.y_axis = complex(0, math.cos(pitch))
        self.z_axis = complex(math.sin(yaw), -math.cos(yaw) * math.sin(pitch))
        self.similarity, self.origin = 1 + 0j, 0j
        points = np.array([self.project(x, y, dome(x, y) + lift) for x, y, lift in landmarks])
        factor, shift = misalignment
        self.similarity = complex(similarity(points)[0] * factor)
        self.origin = complex(TEMPLATE.mean() + shift - self.similarity * points.mean())

    def project(self, x: float, y: float, z: float) -> complex:
        """The pixel of a point of the face."""
        return self.origin + self.similarity * (x * self.x_axis + y * self.y_axis + z * self.z_axis)

    def on_dome(self, x: float, y: float, reach: float, *, tilt: float = 0.0, lift: float = 0.0) -> Patch:
        """What lies within ``reach`` of the point ``lift`` above the dome at (x, y).

        Its axes are foreshortened with the dome and turned by ``tilt`` radians.
        """
        z = dome(x, y)
        slope = FORESHORTENING * DOME_Z**2 / z
        along_x = self.similarity * (self.x_axis - slope * x / DOME_X**2 * self.z_axis)
        along_y = self.similarity * (self.y_axis - slope * y / DOME_Y**2 * self.z_axis)
        cos, sin = math.cos(tilt), math.sin(tilt)
        along_u, along_v = cos * along_x + sin * along_y, cos * along_y - sin * along_x
        return Patch(self, self.project(x, y, z + lift), along_u, along_v, reach * abs(self.similarity))

    def on_plane(self, x: float, y: float, z: float, reach: float = EVERYWHERE) -> Patch:
        """What lies within ``reach`` of (x, y) on the plane at depth ``z``, which turns with the head."""
        along_u, along_v = self.similarity * self.x_axis, self.similarity * self.y_axis
        return Patch(self, self.project(x, y, z), along_u, along_v, reach * abs(self.similarity))

    def silhouette(self) -> Patch:
        """The whole image around the middle of the head, in axes that do not turn: a round head keeps its outline."""
        return Patch(self, self.origin, self.similarity, 1j * self.similarity, EVERYWHERE * abs(self.similarity))

    def lit(self, light_x: float, light_y: float, ambient: float, gloss: np.ndarray) -> np.ndarray:
        """The albedo under one distant light at (light_x, light_y, 1): Lambert's diffuse and Blinn's specular term."""
        by_row, by_column = np.gradient(self.height)
        normal_z = 1 / np.sqrt(np.square(by_column) + np.square(by_row) + 1)
        length = math.hypot(light_x, light_y, 1)
        diffuse = (1 - by_column * light_x - by_row * light_y) * normal_z * (1 / length)
        half_x, half_y, half_z = light_x / length, light_y / length, 1 / length + 1
        aligned = (half_z - by_column * half_x - by_row * half_y) * normal_z * (1 / math.hypot(half_x, half_y, half_z))
        specular = np.square(np.square(np.square(np.square(np.square(np.maximum(aligned, 0))))))  # to the power of 32
        return self.albedo * (ambient + (1.15 - ambient) * np.maximum(diffuse, 0)) + gloss * specular


def dome(x: float, y: float) -> float:
    """Height of the ellipsoid that carries the features."""
    return DOME_Z * math.sqrt(max(0.1, 1 - (x / DOME_X) ** 2 - (y / DOME_Y) ** 2))
