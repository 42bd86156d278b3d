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
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">HHB")
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "F": 1, "LA": 2, "CMYK": 4, "RGBA": 4}


class Header(NamedTuple):
    suffix: str  # of the file format: .jpg, .png, .bmp, .webp
    size: tuple[int, int]  # width and height in pixels
    channels: int  # 1: grey, 3: colour, 4: CMYK or with alpha
    tables: bytes = b""  # of a JPEG: its first segment of quantisation tables

    @property
    def quality(self) -> int | None:
        """Of a JPEG, 1 … 100, as libjpeg counts: of its first table, the inverse of libjpeg's scaling."""
        sixteen_bits = self.tables[:1] and self.tables[0] >> 4
        values = np.frombuffer(self.tables[1:129], ">u2") if sixteen_bits else np.frombuffer(self.tables[1:65], "u1")
        if len(values) < 64:
            return None
        limited = values.max() >= 255
        scale = 100 * (values[:8].sum() / _START_SUM if limited else values.sum() / _TABLE_SUM)  # percent
        return max(1, round(100 - scale / 2 if scale <= 100 else 5000 / scale))


class HeaderReader:
    """Reads one header after the other. The JPEGs of a data set mostly begin alike, and then it parses but one."""

    def __init__(self) -> None:
        self._start = b"\0"  # that of the last JPEG, its frame header included; at first, of none
        self._header: Header | None = None

    def read(self, encoded: bytes) -> Header:
        """Raises ``ValueError`` for what is no image or ends within its header."""
        if encoded.startswith(self._start):
            return self._header
        suffix = image_suffix(encoded)
        if suffix is None:
            raise ValueError(f"is no JPEG, PNG, WebP or BMP: it begins with '{encoded[:4].hex()}'")
        if suffix == ".jpg":
            self._header, end = _read_jpeg(encoded)
            self._start = encoded[:end]
            return self._header
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                return Header(suffix, image.size, _CHANNELS.get(image.mode, 3))
        except Exception as error:  # Pillow's decoders raise almost any class
            raise ValueError(f"has no sound {suffix} header ({error})") from None


def _read_jpeg(content: bytes) -> tuple[Header, int]:
    """The header, and where it ends. Walks the segments up to it: ten times as quick as a library's look at all."""
    at, tables = 2, b""
    try:
        while True:
            start, marker, length = _SEGMENT.unpack_from(content, at)
            if start != 0xFF:
                raise ValueError(f"has no JPEG marker at byte {at}")
            if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill, or a marker without a segment
                at += 1 if marker == 0xFF else 2
                continue
            if marker == 0xDB:
                tables = tables or content[at + 4 : at + 2 + length]
            if marker in _FRAMES:
                height, width, channels = _FRAME.unpack_from(content, at + 5)
                return Header(".jpg", (width, height), channels, tables), at + 5 + _FRAME.size
            if length < 2 or marker in (0xD9, 0xDA):
                raise ValueError("has no JPEG frame header")
            at += 2 + length
    except struct.error:
        raise ValueError(f"ends within its JPEG header, after {len(content)} bytes") from None
