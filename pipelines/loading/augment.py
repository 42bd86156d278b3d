"""Augmentation sets: a name, the random parameters of a sample, and DALI operators that use them.

A set is one function. Its keyword arguments are parameters of a sample, each made from one uniform of the
schedule, and its body builds a DALI graph. It runs under DALI's conditional execution: ``if`` on a sample's boolean
sends only the chosen samples through an operator. The mirror image comes behind it, in the decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from nvidia.dali import fn, math
from nvidia.dali.data_node import DataNode

from pipelines.common.errors import unknown
from pipelines.loading.draws import Draw, chance, choice, fitting_aspect, log_uniform, one_of, permutation, uniform
from pipelines.loading.operators import (
    INTERPOLATIONS,
    erased,
    greyed,
    jittered,
    jittered_with_hue,
    rectangle,
    resized_as_opencv,
)
from pipelines.loading.resize import resized


@dataclass(frozen=True)
class Augmentation:
    """``transform(images, image_size, **parameters)`` maps DALI images, uint8 (image_size, image_size, 3) RGB, to such.

    They are on the CPU or on a GPU; the parameters are scalars on the CPU. ``flip``: half of the images are mirrored.
    ``move(landmarks, image_size, **parameters)`` says where it takes points of the images, float32 (b, k, 2) as parts
    of their sides; a set without one leaves every point where it is.
    """

    flip: bool = True
    draws: Mapping[str, Draw] = field(default_factory=dict)
    transform: Callable[..., DataNode] | None = None
    move: Callable[..., np.ndarray] | None = None

    def parameters(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters, each (b, ...), from the schedule's uniforms float32 (b, len(draws))."""
        return {name: draw(column) for (name, draw), column in zip(self.draws.items(), uniforms.T, strict=True)}


AUGMENTATIONS = {"none": Augmentation(flip=False), "flip": Augmentation()}


def find_augmentation(name: str) -> Augmentation:
    """The augmentation set called ``name``."""
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def augmentation(
    move: Callable[..., np.ndarray] | None = None, /, **draws: Draw
) -> Callable[[Callable[..., DataNode]], Callable[..., DataNode]]:
    """Register the decorated function as the set of its name, with the parameters that ``draws`` make."""

    def register(transform: Callable[..., DataNode]) -> Callable[..., DataNode]:
        AUGMENTATIONS[transform.__name__] = Augmentation(draws=draws, transform=transform, move=move)
        return transform

    return register


@augmentation(
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
        images = greyed(images)
    return images


_PLACE = {
    "area": uniform(0.02, 1 / 3),
    "aspect": log_uniform(0.3, 1 / 0.3),
    "top": uniform(0, 1),
    "left": uniform(0, 1),
}


@augmentation(
    kind=one_of(4, 0.2),
    sigma=uniform(0.1, 5),
    turns=permutation(4),
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
    turns: DataNode,
    brightness: DataNode,
    contrast: DataNode,
    saturation: DataNode,
    hue: DataNode,
    **where: DataNode,
) -> DataNode:
    """Random structure perturbation of TopoFR (Dan et al., 2024): a fifth are blurred, grey, recoloured or erased."""
    # No elif, which would hand all that the later ones need through the earlier: a tenth of the time.
    if kind == 0:
        images = fn.gaussian_blur(images, window_size=[9, 5], sigma=sigma)
    if kind == 1:
        images = greyed(images)
    if kind == 2:
        images = jittered_with_hue(images, turns, brightness, contrast, saturation, hue)
    if kind == 3:
        images = erased(images, image_size, **where)
    return images


@augmentation(
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
    """Where ``strong`` takes landmarks: the rectangle of `rectangle`, in whole pixels, becomes the image."""
    rows, columns = (
        np.clip(np.sqrt(share), 0, 1) * image_size for share in (crop_area * crop_aspect, crop_area / crop_aspect)
    )
    place = np.rint(np.stack([left * (image_size - columns), top * (image_size - rows)], axis=-1))
    shape = np.rint(np.stack([columns, rows], axis=-1))
    inside = (landmarks * image_size - place[:, None]) / shape[:, None]
    return np.where(crop[:, None, None], inside, landmarks).astype(np.float32)


@augmentation(
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
        # The crop's numbers once more, exchanged: else what is erased would lie on the side to which the crop lay.
        images = erased(images, image_size, top=left, left=top, **where)
    return images
