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
        image = decode(encoded)
        wrong_size = self.size is not None and image.size != (self.size, self.size)
        if not wrong_size and self.quality is None:
            return encoded
        image = image.convert("RGB")
        if wrong_size:
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return to_jpeg(image, self.quality or QUALITY)


def decode(encoded: bytes) -> Image.Image:
    """The image, turned upright where the camera noted how it was held. Pillow raises almost any class of error."""
    with Image.open(io.BytesIO(encoded)) as image:
        return ImageOps.exif_transpose(image)


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
