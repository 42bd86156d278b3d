"""What the first bytes of an encoded image tell without decoding it."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.files import image_suffix

# Sums over the luminance table of the JPEG standard (ISO 10918-1, K.1), which libjpeg scales by its quality: of all 64
# values, and of the first 8 of the zigzag, which keep clear of the limit of 255 for longer.
_TABLE_SUM, _START_SUM = 3688, 105
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frame headers
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "F": 1, "LA": 2, "CMYK": 4, "RGBA": 4}


class Header(NamedTuple):
    suffix: str  # of the file format: .jpg, .png, .bmp, .webp
    width: int  # pixels
    height: int
    channels: int  # 1: grey, 3: colour, 4: CMYK or with alpha
    quality: int | None  # of a JPEG, 1 … 100, as libjpeg counts; an estimate from its first quantisation table


def read_header(encoded: np.ndarray | bytes) -> Header:
    """Raises ``ValueError`` for what is no image or ends within its header."""
    content = bytes(encoded)
    suffix = image_suffix(content)
    if suffix is None:
        raise ValueError(f"is no JPEG, PNG, WebP or BMP: it begins with '{content[:4].hex()}'")
    if suffix == ".jpg":
        return _read_jpeg(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return Header(suffix, *image.size, _CHANNELS.get(image.mode, 3), None)
    except Exception as error:  # Pillow's decoders raise almost any class
        raise ValueError(f"has no sound {suffix} header ({error})") from None


def _read_jpeg(content: bytes) -> Header:
    """Walks the segments up to the frame header: ten times as quick as a library's look at the whole header."""
    at, quality = 2, None
    try:
        while True:
            marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
            if content[at] != 0xFF:
                raise ValueError(f"has no JPEG marker at byte {at}")
            if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill, or a marker without a segment
                at += 1 if marker == 0xFF else 2
                continue
            if marker == 0xDB and quality is None:
                quality = _quality(content[at + 4 : at + 2 + length])
            if marker in _FRAMES:
                height, width, channels = struct.unpack_from(">HHB", content, at + 5)
                return Header(".jpg", width, height, channels, quality)
            if length < 2 or marker in (0xD9, 0xDA):
                raise ValueError("has no JPEG frame header")
            at += 2 + length
    except (IndexError, struct.error):
        raise ValueError(f"ends within its JPEG header, after {len(content)} bytes") from None


def _quality(tables: bytes) -> int | None:
    """Of the segment's first table, the inverse of libjpeg's scaling of the standard one."""
    values = np.frombuffer(tables[1:129], ">u2") if tables[:1] and tables[0] >> 4 else np.frombuffer(tables[1:65], "u1")
    if len(values) < 64:
        return None
    limited = values.max() >= 255
    scale = 100 * (values[:8].sum() / _START_SUM if limited else values.sum() / _TABLE_SUM)  # percent
    return max(1, round(100 - scale / 2 if scale <= 100 else 5000 / scale))
