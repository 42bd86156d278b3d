"""JPEGs of another size or quality."""

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

QUALITY = 95  # where only a size is asked for


@dataclass(frozen=True)
class Reencode:
    """Resizes to ``size`` x ``size`` pixels and encodes as JPEG of ``quality``.

    With ``quality`` None, images that have the size already are left as they are.
    """

    size: int | None = None
    quality: int | None = None

    def __call__(self, index: int, encoded: bytes) -> bytes:
        with Image.open(io.BytesIO(encoded)) as image:
            right_size = self.size is None or image.size == (self.size, self.size)
            if not right_size:  # a JPEG twice as large or larger is decoded at a half, a quarter, an eighth of its size
                image.draft(None, (self.size, self.size))
            image = ImageOps.exif_transpose(image)
        if right_size and self.quality is None:
            return encoded
        if image.mode != "RGB":
            image = image.convert("RGB")
        if not right_size:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return to_jpeg(image, self.quality or QUALITY)


def decode(encoded: bytes) -> Image.Image:
    """The image, turned upright where the camera noted how it was held. Pillow raises almost any class of error."""
    with Image.open(io.BytesIO(encoded)) as image:
        return ImageOps.exif_transpose(image)


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
