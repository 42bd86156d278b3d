"""What augmentation sets do to images, as DALI operators: rectangles, colours, interpolations of other libraries.

Images are uint8 (h, w, 3) RGB, on the CPU or on a GPU; all else is a scalar of a sample on the CPU.
"""

from typing import Any

from nvidia.dali import fn, math
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

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
_TRIANGULAR, _GAUSSIAN = DALIInterpType.INTERP_TRIANGULAR.value, DALIInterpType.INTERP_GAUSSIAN.value
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
    images: DataNode, order: DataNode, brightness: DataNode, contrast: DataNode, saturation: DataNode
) -> DataNode:
    """torchvision's ``ColorJitter`` of Pillow's images: what ``order`` has as 0, 1 and 2, one after the other.

    Each step clips, and ends in whole numbers, cut off.
    """
    for place in range(3):
        if order[place] == 0:
            images = _cut_off(images, brightness=brightness)
        elif order[place] == 1:
            images = _cut_off(images, contrast=contrast, contrast_center=_mean_grey(images))
        else:
            images = _cut_off(_saturated(images, saturation))
    return images


def _cut_off(images: DataNode, **change: Any) -> DataNode:
    """``fn.brightness_contrast`` to whole numbers, cut off where DALI rounds."""
    return fn.brightness_contrast(images, brightness_shift=-0.499 / 255, dtype=DALIDataType.UINT8, **change)


def jittered_with_hue(
    images: DataNode, turns: DataNode, brightness: DataNode, contrast: DataNode, saturation: DataNode, hue: DataNode
) -> DataNode:
    """torchvision's ``ColorJitter`` of tensors: brightness, contrast, saturation and hue (degrees) at their ``turns``.

    The factors are below 1, so nothing is clipped, and all is linear but the hue: the steps commute, except that
    saturation and contrast mix in a grey of before or behind the hue.
    """
    if turns[2] < turns[3]:
        images = _rounded(_saturated(images, saturation))
    mean = _mean_grey(images)
    images = turned(images, hue)
    if turns[1] > turns[3]:
        mean = _mean_grey(images)
    if turns[2] > turns[3]:
        images = _rounded(_saturated(images, saturation))
    return fn.brightness_contrast(images, brightness=brightness, contrast=contrast, contrast_center=mean)


def _rounded(images: DataNode) -> DataNode:
    """float32 images as uint8; ``fn.cast`` takes much longer."""
    return fn.brightness_contrast(images, dtype=DALIDataType.UINT8)


def _saturated(images: DataNode, saturation: DataNode) -> DataNode:
    """float32; what ``fn.hsv`` does, in less time."""
    return saturation * images + (1.0 - saturation) * greyed(images)


def greyed(images: DataNode) -> DataNode:
    """Each pixel's grey in all three colours: .299 red, .587 green, .114 blue. ``fn.hsv`` takes far longer."""
    return fn.color_space_conversion(_luma(images), image_type=DALIImageType.GRAY, output_type=DALIImageType.RGB)


def _luma(images: DataNode) -> DataNode:
    """uint8 (h, w, 1)."""
    return fn.color_space_conversion(images, image_type=DALIImageType.RGB, output_type=DALIImageType.GRAY)


def _mean_grey(images: DataNode) -> DataNode:
    """A number on the CPU, where operators want their parameters."""
    return fn.reductions.mean(_luma(images)).cpu()


# 3 x 3: by how many sixths of the circle of hues a column's colour lies ahead of a row's.
_AHEAD = [0.0, 2.0, -2.0, -2.0, 0.0, 2.0, 2.0, -2.0, 0.0]


def turned(images: DataNode, degrees: DataNode) -> DataNode:
    """Images with another hue, as HSV has it, by -120 … 120 degrees.

    A pixel's largest and smallest colour stay its largest and smallest. In between, HSV's ramps amount to a linear map
    of the colours and of these two, clipped to them: no pixel's hue need be known. DALI's own ``hue`` turns about grey
    in YIQ: by 72 degrees that is 12 levels away.
    """
    matrix = math.clamp(3.0 - 2.0 * math.abs(degrees / 60.0 + Constant(_AHEAD, shape=(3, 3))), -1.0, 1.0)
    share = 0.5 - 0.5 * fn.reductions.sum(matrix, axes=1, keep_dims=True)  # of each of the two: greys stay as they are
    red, green, blue = (images[:, :, channel : channel + 1] for channel in range(3))
    largest, smallest = (select(select(red, green), blue) for select in (math.max, math.min))
    colours = fn.cat(images, largest, smallest, axis=2)
    moved = fn.coord_transform(colours, M=fn.cat(matrix, share, share, axis=1), dtype=DALIDataType.UINT8)
    return math.max(math.min(moved, largest), smallest)  # ``math.clamp`` takes much longer


def resized_as_opencv(images: DataNode, before: DataNode | int, after: DataNode | int, kind: DataNode) -> DataNode:
    """Images of ``before`` x ``before`` pixels at the whole number ``after``, by OpenCV's interpolation ``kind``.

    DALI has no mean of an area. Where images shrink to half or less, a Gaussian is near it, else a triangle; where they
    grow to twice or more, the nearest pixel at twice the size, halved, else a Gaussian: one level away at most, or two.
    """
    if kind == AREA:
        if 2 * before <= after:
            images = resized(images, 2 * after, interp_type=DALIInterpType.INTERP_NN)
            images = resized(images, after, antialias=False)
        else:
            is_near = (2 * after > before) & (after <= before)
            images = resized(images, after, interp_type=_interpolation(_GAUSSIAN + (_TRIANGULAR - _GAUSSIAN) * is_near))
    else:
        # OpenCV's nearest is the pixel at the corner of a result, not at its middle.
        start = (kind == NEAREST) * (0.001 - 0.5 * before / after)
        images = resized(
            images,
            after,
            interp_type=_interpolation(kind),
            antialias=False,
            roi_start=fn.stack(start, start),
            roi_end=fn.stack(before + start, before + start),
        )
    return images


def _interpolation(number: DataNode) -> DataNode:
    return fn.reinterpret(number, dtype=DALIDataType.INTERP_TYPE)
