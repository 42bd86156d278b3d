"""Images decoded by Pillow, to the same pixels that DALI and OpenCV give; and encoded."""

import io

import numpy as np
from PIL import Image, ImageOps

from pipelines.common.errors import UserError
from pipelines.common.header import MOST_PIXELS

Image.MAX_IMAGE_PIXELS = None  # only warns; what is too large is refused here and where headers are read

_XMP = ("xmp", "XML:com.adobe.xmp")  # may say how an image is held, too; Pillow follows it, DALI and OpenCV do not
QUALITY = 95  # of a JPEG, where nobody asks for another


def decode(encoded: np.ndarray | bytes, least_side: int | None = None) -> Image.Image:
    """The image in RGB, upright, with 8 bits a channel.

    With ``least_side``, a JPEG twice that large or larger may come at a half, a quarter, an eighth of its size.
    Raises ``ValueError``, ``OSError``, and from Pillow almost any other class of error.
    """
    with Image.open(io.BytesIO(bytes(encoded))) as image:
        if image.width * image.height > MOST_PIXELS:
            raise UserError(f"announces {image.width} x {image.height} pixels")
        if least_side:
            image.draft(None, (least_side, least_side))
        for name in _XMP:
            image.info.pop(name, None)
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper 8, where Pillow would clip to 255; transparency is left out."""
    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers, whose range nobody knows")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError("its pixels are 32-bit numbers, whose range nobody knows")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def to_ppm(image: Image.Image) -> bytes:
    """The image as it is: a short header and its pixels."""
    content = io.BytesIO()
    image.save(content, "PPM")
    return content.getvalue()
