"""JPEGs of another size or quality."""

from dataclasses import dataclass

from PIL import Image

from pipelines.common.header import HeaderReader
from pipelines.common.pillow import QUALITY, decode, to_jpeg


@dataclass(frozen=True)
class Reencode:
    """Resizes to ``size`` x ``size`` pixels and encodes as JPEG of ``quality``.

    With ``quality`` None, images that have the size already are left as they are.
    """

    size: int | None = None
    quality: int | None = None

    def __call__(self, index: int, encoded: bytes) -> bytes:
        right_size = self.size is None or HeaderReader().read(encoded).size == (self.size, self.size)
        image = decode(encoded, None if right_size else self.size)  # also where nothing changes: it may be damaged
        if right_size and self.quality is None:
            return encoded
        if self.size is not None and not right_size:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return to_jpeg(image, self.quality or QUALITY)
