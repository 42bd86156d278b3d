"""What augmentation sets do to images, as DALI operators: rectangles, colours, interpolations of other libraries.

Images are uint8 (h, w, 3) RGB, on the CPU or on a GPU; all else is a scalar of a sample on the CPU.
"""

from nvidia.dali import fn, math
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIInterpType

from pipelines.loading.resize import resized

# OpenCV's interpolations: AREA, and the others by the numbers that DALI has for them.
AREA = -1
NEAREST, LINEAR, CUBIC, LANCZOS = (
    kind.value
    for kind in (
        DALIInterpType.INTERP_NN,
        DALIInterpType.INTERP_LINEAR,
        DALIInterpType.INTERP_CUBIC,
        DALIInterpType.INTERP_LANCZOS3,  # six pixels wide, OpenCV's is eight
    )
)
INTERPOLATIONS = (NEAREST, LINEAR, AREA, CUBIC, LANCZOS)


def rectangle(
    image_size: int, area: DataNode, aspect: DataNode, top: DataNode, left: DataNode
) -> tuple[DataNode, DataNode]:
    """Place and shape, (rows, columns) in pixels, of a share ``area`` of the image with ``aspect`` rows a column."""
    rows = math.clamp(math.sqrt(area * aspect), 0.0, 1.0) * image_size
    columns = math.clamp(math.sqrt(area / aspect), 0.0, 1.0) * image_size
    place = fn.stack(top * (image_size - rows), left * (image_size - columns))
    return fn.cast(place, dtype=DALIDataType.INT32), fn.cast(fn.stack(rows, columns), dtype=DALIDataType.INT32)


def erased(images: DataNode, image_size: int, **where: DataNode) -> DataNode:
    """Fill a rectangle with grey, which is 0 when images are normalised."""
    place, shape = rectangle(image_size, **where)
    anchor, extent = (fn.cast(value, dtype=DALIDataType.FLOAT) for value in (place, shape))
    return fn.erase(images, anchor=anchor, shape=extent, axes=(0, 1), fill_value=[128.0])


def jittered(
    images: DataNode,
    order: DataNode,
    brightness: DataNode,
    contrast: DataNode,
    saturation: DataNode,
    hue: DataNode | None = None,
) -> DataNode:
    """torchvision's ``ColorJitter``: what ``order`` has as 0, 1, 2 and 3, one after the other; ``hue`` is in degrees.

    Without a hue each step ends in whole numbers cut off, as in Pillow's images, else none does, as in tensors.
    """
    images = fn.cast(images, dtype=DALIDataType.FLOAT)
    for place in range(3 if hue is None else 4):
        if order[place] == 0:
            images = brightness * images
        elif order[place] == 1:
            mean = fn.reductions.mean(fn.hsv(images, saturation=0.0, dtype=DALIDataType.FLOAT))
            images = contrast * images + (1.0 - contrast) * mean
        elif order[place] == 2:
            images = fn.hsv(images, saturation=saturation, dtype=DALIDataType.FLOAT)
        elif hue is not None:
            images = _turned(images, hue)
        if hue is None:
            images = math.floor(math.clamp(images, 0.0, 255.0))
    return fn.cast(images, dtype=DALIDataType.UINT8)


def _turned(images: DataNode, degrees: DataNode) -> DataNode:
    """float32 images with another hue, as HSV has it: the largest and the smallest of a pixel's colours stay so.

    DALI's own ``hue`` turns about grey in YIQ: by 72 degrees that is 12 levels away.
    """
    red, green, blue = (images[:, :, channel : channel + 1] for channel in range(3))
    largest, smallest = (reduce(images, axes=2, keep_dims=True) for reduce in (fn.reductions.max, fn.reductions.min))
    chroma = largest - smallest
    is_red = largest == red
    is_green = (largest == green) * (1 - is_red)
    is_blue = 1 - is_red - is_green
    sixths = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    sixths = sixths / math.max(chroma, 1e-6) + 2 * is_green + 4 * is_blue + degrees / 60
    colours = []
    for first in (5, 3, 1):  # where a red, green or blue begins to fade; it is gone between one and three sixths on
        along = sixths + first
        along = along - 6 * math.floor(along / 6)
        colours.append(largest - chroma * math.clamp(math.min(along, 4 - along), 0.0, 1.0))
    return fn.cat(*colours, axis=2)


def resized_as_opencv(images: DataNode, before: DataNode | int, after: DataNode | int, kind: DataNode) -> DataNode:
    """Images of ``before`` x ``before`` pixels at the whole number ``after``, by OpenCV's interpolation ``kind``.

    DALI has no mean of an area. Where images shrink to half or less, a Gaussian is near it, else a triangle; where they
    grow to twice or more, the nearest pixel at twice the size, halved, else a Gaussian: one level away at most, or two.
    """
    if kind == AREA:
        if 2 * after <= before:
            images = resized(images, after, interp_type=DALIInterpType.INTERP_GAUSSIAN)
        elif after <= before:
            images = resized(images, after)
        elif 2 * before <= after:
            images = resized(images, 2 * after, interp_type=DALIInterpType.INTERP_NN)
            images = resized(images, after, antialias=False)
        else:
            images = resized(images, after, interp_type=DALIInterpType.INTERP_GAUSSIAN)
    else:
        # OpenCV's nearest is the pixel at the corner of a result, not at its middle.
        start = (kind == NEAREST) * (0.001 - 0.5 * before / after)
        images = resized(
            images,
            after,
            interp_type=fn.reinterpret(kind, dtype=DALIDataType.INTERP_TYPE),
            antialias=False,
            roi_start=fn.stack(start, start),
            roi_end=fn.stack(before + start, before + start),
        )
    return images
