"""Augmentation sets: a name, the random parameters of a sample, and DALI operators that use them.

A set is one function. Its keyword arguments are parameters of a sample, each made from one uniform of the
schedule, and its body builds a DALI graph. It runs under DALI's conditional execution: ``if`` on a sample's boolean
sends only the chosen samples through an operator. The mirror image comes behind it, in the decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from nvidia.dali import fn, math
from nvidia.dali.data_node import DataNode

from pipelines.common.errors import unknown
from pipelines.loading.operators import INTERPOLATIONS, erased, jittered, rectangle, resized_as_opencv
from pipelines.loading.resize import resized

Draw = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Augmentation:
    """``transform(images, image_size, **parameters)`` maps DALI images, uint8 (image_size, image_size, 3) RGB, to such.

    They are on the CPU or on a GPU; the parameters are scalars on the CPU. ``flip``: half of the images are mirrored.
    ``move(landmarks, image_size, **parameters)`` says where it takes points of the images, float32 (b, k, 2) as parts
    of their sides; a set without one leaves every point where it is.
    """

    name: str
    flip: bool = True
    draws: Mapping[str, Draw] = field(default_factory=dict)
    transform: Callable[..., DataNode] | None = None
    move: Callable[..., np.ndarray] | None = None

    def parameters(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters, each (b, ...), from the schedule's uniforms float32 (b, len(draws))."""
        return {name: draw(column) for (name, draw), column in zip(self.draws.items(), uniforms.T, strict=True)}


def chance(probability: float) -> Draw:
    """True with ``probability``."""
    return lambda uniforms: uniforms < probability


def uniform(low: float, high: float) -> Draw:
    """float32 in [low, high)."""
    return lambda uniforms: np.float32(low) + np.float32(high - low) * uniforms


def log_uniform(low: float, high: float) -> Draw:
    """float32 in [low, high), its logarithm uniform.

    The power is taken in float64: in float32 its last bit depends on the processor, and pixels are counted from it.
    """
    return lambda uniforms: (low * (high / low) ** uniforms.astype(np.float64)).astype(np.float32)


def fitting_aspect(least_area: float, most: float) -> Draw:
    """Rows a column, float32 in (1 / most, most), of a rectangle that is drawn until it fits into a square.

    Its area is drawn from ``least_area`` to 1 and its aspect's logarithm x evenly, as by torchvision's
    ``RandomResizedCrop``; of the areas, those up to exp(-|x|) fit. That share is the density of x in what is left.
    """
    grid = np.linspace(0, np.log(most), 1025)
    below = 1 - np.exp(-grid) - least_area * grid

    def draw(uniforms: np.ndarray) -> np.ndarray:
        signed = 2 * uniforms.astype(np.float64) - 1
        size = np.interp(np.abs(signed) * below[-1], below, grid)
        return np.exp(np.copysign(size, signed)).astype(np.float32)

    return draw


def one_of(count: int, probability: float) -> Draw:
    """One of 0 … count - 1, int32, with ``probability`` in all, else -1."""
    return lambda uniforms: np.where(uniforms < probability, np.floor(uniforms / probability * count), -1).astype(
        np.int32
    )


def choice(*values: int) -> Draw:
    """One of the whole numbers ``values``, all equally likely, int32."""
    table = np.array(values, np.int32)
    return lambda uniforms: table[(uniforms * len(table)).astype(np.int64)]


def permutation(count: int) -> Draw:
    """The numbers 0 … count - 1 in any order, all equally likely, int32 (b, count)."""
    table = np.array(list(permutations(range(count))), np.int32)
    return lambda uniforms: table[(uniforms * len(table)).astype(np.int64)]


AUGMENTATIONS = {"none": Augmentation("none", flip=False), "flip": Augmentation("flip")}


def find_augmentation(name: str) -> Augmentation:
    """The augmentation set called ``name``."""
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def _augmentation(
    move: Callable[..., np.ndarray] | None = None, /, **draws: Draw
) -> Callable[[Callable[..., DataNode]], Callable[..., DataNode]]:
    """Register the decorated function as the set of its name, with the parameters that ``draws`` make."""

    def register(transform: Callable[..., DataNode]) -> Callable[..., DataNode]:
        AUGMENTATIONS[transform.__name__] = Augmentation(
            transform.__name__, draws=draws, transform=transform, move=move
        )
        return transform

    return register


@_augmentation(
    shrink=chance(0.1),
    shrunk=uniform(0.5, 0.8),
    blur=chance(0.2),
    window=choice(3, 5),
    recolour=chance(0.2),
    hue=uniform(0, 20),
    saturation=uniform(1, 1.2),
    grey=chance(0.1),
)
def arcface(
    images: DataNode,
    image_size: int,
    *,
    shrink: DataNode,
    shrunk: DataNode,
    blur: DataNode,
    window: DataNode,
    recolour: DataNode,
    hue: DataNode,
    saturation: DataNode,
    grey: DataNode,
) -> DataNode:
    """The set of insightface's arcface_torch: low resolution, Gaussian blur, hue (degrees) and saturation, grey."""
    if shrink:
        side = shrunk * image_size
        images = resized(images, side)
        images = resized(images, image_size)
    if blur:
        images = fn.gaussian_blur(images, window_size=window)
    if recolour:
        images = fn.hsv(images, hue=hue, saturation=saturation)
    if grey:
        images = fn.hsv(images, saturation=0.0)
    return images


_PLACE = {
    "area": uniform(0.02, 1 / 3),
    "aspect": log_uniform(0.3, 1 / 0.3),
    "top": uniform(0, 1),
    "left": uniform(0, 1),
}


@_augmentation(
    kind=one_of(4, 0.2),
    sigma=uniform(0.1, 5),
    order=permutation(4),
    brightness=uniform(0.1, 0.5),
    contrast=uniform(0.3, 0.6),
    saturation=uniform(0.2, 0.5),
    hue=uniform(-36, 108),
    **_PLACE,
)
def rsp(
    images: DataNode,
    image_size: int,
    *,
    kind: DataNode,
    sigma: DataNode,
    order: DataNode,
    brightness: DataNode,
    contrast: DataNode,
    saturation: DataNode,
    hue: DataNode,
    **where: DataNode,
) -> DataNode:
    """Random structure perturbation of TopoFR (Dan et al., 2024): a fifth are blurred, grey, recoloured or erased."""
    if kind == 0:
        images = fn.gaussian_blur(images, window_size=[9, 5], sigma=sigma)
    elif kind == 1:
        images = fn.hsv(images, saturation=0.0)
    elif kind == 2:
        images = jittered(images, order, brightness, contrast, saturation, hue)
    elif kind == 3:
        images = erased(images, image_size, **where)
    return images


@_augmentation(
    crop=chance(0.2),
    shrink=chance(0.2),
    shrunk=uniform(0.2, 1),
    down=choice(*INTERPOLATIONS),
    up=choice(*INTERPOLATIONS),
    recolour=chance(0.2),
    order=permutation(3),
    brightness=uniform(0.5, 1.5),
    contrast=uniform(0.5, 1.5),
    saturation=uniform(0.5, 1.5),
    **{**_PLACE, "area": uniform(0, 1), "aspect": fitting_aspect(0.2, 4 / 3)},
)
def adaface(
    images: DataNode,
    image_size: int,
    *,
    crop: DataNode,
    shrink: DataNode,
    shrunk: DataNode,
    down: DataNode,
    up: DataNode,
    recolour: DataNode,
    order: DataNode,
    brightness: DataNode,
    contrast: DataNode,
    saturation: DataNode,
    area: DataNode,
    aspect: DataNode,
    **corner: DataNode,
) -> DataNode:
    """AdaFace's set (Kim et al., CVPR 2022): a crop left where it was on black, low resolution, photometric changes."""
    if crop:
        fitting = 0.2 + area * (math.min(aspect, 1 / aspect) - 0.2)
        place, shape = rectangle(image_size, fitting, aspect, **corner)
        images = fn.slice(images, start=place, shape=shape, axes=(0, 1))
        images = fn.slice(images, start=-place, shape=[image_size] * 2, axes=(0, 1), out_of_bounds_policy="pad")
    if shrink:
        side = math.floor(shrunk * image_size)
        images = resized_as_opencv(images, image_size, side, down)
        images = resized_as_opencv(images, side, image_size, up)
    if recolour:
        images = jittered(images, order, brightness, contrast, saturation)
    return images


def _cropped(
    landmarks: np.ndarray,
    image_size: int,
    *,
    crop: np.ndarray,
    crop_area: np.ndarray,
    crop_aspect: np.ndarray,
    top: np.ndarray,
    left: np.ndarray,
    **_others: np.ndarray,
) -> np.ndarray:
    """Where ``strong`` takes landmarks: the rectangle of `_rectangle`, in whole pixels, becomes the image."""
    rows, columns = (
        np.clip(np.sqrt(share), 0, 1) * image_size for share in (crop_area * crop_aspect, crop_area / crop_aspect)
    )
    place = np.rint(np.stack([left * (image_size - columns), top * (image_size - rows)], axis=-1))
    shape = np.rint(np.stack([columns, rows], axis=-1))
    inside = (landmarks * image_size - place[:, None]) / shape[:, None]
    return np.where(crop[:, None, None], inside, landmarks).astype(np.float32)


@_augmentation(
    _cropped,
    crop=chance(0.5),
    crop_area=uniform(0.6, 1),
    crop_aspect=log_uniform(0.85, 1.18),
    recolour=chance(0.3),
    brightness=uniform(0.7, 1.3),
    contrast=uniform(0.7, 1.3),
    saturation=uniform(0.6, 1.4),
    hue=uniform(-12, 12),
    blur=chance(0.2),
    sigma=uniform(0.3, 2),
    distort=chance(0.3),
    quality=choice(*range(15, 76, 5)),
    erase=chance(0.2),
    **{**_PLACE, "area": uniform(0.02, 0.2)},
)
def strong(
    images: DataNode,
    image_size: int,
    *,
    crop: DataNode,
    crop_area: DataNode,
    crop_aspect: DataNode,
    recolour: DataNode,
    brightness: DataNode,
    contrast: DataNode,
    saturation: DataNode,
    hue: DataNode,
    blur: DataNode,
    sigma: DataNode,
    distort: DataNode,
    quality: DataNode,
    erase: DataNode,
    top: DataNode,
    left: DataNode,
    **where: DataNode,
) -> DataNode:
    """For small or clean training sets: random resized crop, colour, blur, JPEG compression, erasing."""
    if crop:
        place, shape = rectangle(image_size, crop_area, crop_aspect, top, left)
        images = fn.slice(images, start=place, shape=shape, axes=(0, 1))
        images = resized(images, image_size)
    if recolour:
        images = fn.color_twist(images, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    if blur:
        images = fn.gaussian_blur(images, sigma=sigma)
    if distort:
        images = fn.jpeg_compression_distortion(images, quality=quality)
    if erase:
        images = erased(images, image_size, top=left, left=top, **where)
    return images
