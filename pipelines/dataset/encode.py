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
            wrong_size = self.size is not None and image.size != (self.size, self.size)
            if not wrong_size and self.quality is None:
                image.load()
                return encoded
            upright = ImageOps.exif_transpose(image).convert("RGB")
        if wrong_size:
            upright = upright.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return to_jpeg(upright, self.quality or QUALITY)


def to_jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
