"""Augmentation sets: a name, the random parameters of a sample, and DALI operators that use them.

A set is one function. Its keyword arguments are parameters of a sample, each made from one random number of the
schedule, and its body builds a DALI graph. It runs under DALI's conditional execution: ``if`` on a sample's boolean
sends only the chosen samples through an operator. The mirror image is left to the loader, which has it cheaper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode

Draw = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Augmentation:
    """``transform(images, image_size, **parameters)`` maps DALI images, uint8 (image_size, image_size, 3) RGB, to such.

    They are on the CPU or on a GPU; the parameters are scalars on the CPU. ``flip``: half of the images are mirrored.
    """

    name: str
    flip: bool = True
    draws: Mapping[str, Draw] = field(default_factory=dict)
    transform: Callable[..., DataNode] | None = None

    def parameters(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters, each (b,), from the schedule's numbers float32 (b, len(draws)) in [0, 1)."""
        return {name: draw(column) for (name, draw), column in zip(self.draws.items(), numbers.T, strict=True)}


def chance(probability: float) -> Draw:
    """True with ``probability``."""
    return lambda numbers: numbers < probability


def uniform(low: float, high: float) -> Draw:
    """float32 in [low, high)."""
    return lambda numbers: np.float32(low) + np.float32(high - low) * numbers


def choice(*values: int) -> Draw:
    """One of the whole numbers ``values``, all equally likely, int32."""
    table = np.array(values, np.int32)
    return lambda numbers: table[(numbers * len(table)).astype(np.int64)]


AUGMENTATIONS = {"none": Augmentation("none", flip=False), "flip": Augmentation("flip")}


def find_augmentation(name: str) -> Augmentation:
    """The augmentation set called ``name``."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation '{name}' is unknown; use one of {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def _augmentation(**draws: Draw) -> Callable[[Callable[..., DataNode]], Callable[..., DataNode]]:
    """Register the decorated function as the set of its name, with the parameters that ``draws`` make."""

    def register(transform: Callable[..., DataNode]) -> Callable[..., DataNode]:
        AUGMENTATIONS[transform.__name__] = Augmentation(transform.__name__, draws=draws, transform=transform)
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
        images = fn.resize(images, resize_x=side, resize_y=side)
        images = fn.resize(images, resize_x=image_size, resize_y=image_size)
    if blur:
        images = fn.gaussian_blur(images, window_size=window)
    if recolour:
        images = fn.hsv(images, hue=hue, saturation=saturation)
    if grey:
        images = fn.hsv(images, saturation=0.0)
    return images
