"""What an encoded image tells about itself before it is decoded."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.common.formats import image_suffix

MOST_PIXELS = 10**8  # of an image; a damaged or hostile header may announce more than any memory holds

# Sums over the luminance table of the JPEG standard (ISO 10918-1, K.1), which libjpeg scales by its quality: of all 64
# values, and of the first 8 of the zigzag, which keep clear of the limit of 255 for longer.
_TABLE_SUM, _START_SUM = 3688, 105
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frame headers
_APP1, _APP14 = 0xE1, 0xEE
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">HHB")
_ORIENTATION = 0x0112  # the tag of EXIF
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 2, "CMYK": 4, "RGBA": 4}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type
_WEBP_SIDE = (1 << 14) - 1
_MOST_HEADERS, _MOST_LENGTHS = 256, 4  # that are kept: to look them up has to be quicker than to parse


class Header(NamedTuple):
    suffix: str  # the kind of file, a key of formats.SUFFIXES
    size: tuple[int, int]  # width and height in pixels, before it is turned upright
    channels: int  # 1: grey, 3: colour, 4: CMYK or with alpha
    tables: bytes = b""  # of a JPEG: its first segment of quantisation tables
    plain: bool = False  # every decoder makes the same of it, DALI's too

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
    """Reads one header after the other. The JPEGs of a set share a few headers: each is parsed once and reused."""

    def __init__(self) -> None:
        self._known: dict[bytes, Header] = {}  # by the first bytes of a JPEG, its frame header included
        self._lengths: set[int] = set()  # of those

    def read(self, encoded: np.ndarray | bytes) -> Header:
        """The header of uint8 (bytes,). Raises ``ValueError`` for what is no image, or none that should be decoded."""
        for length in self._lengths:
            start = encoded[:length]
            if header := self._known.get(start if isinstance(start, bytes) else start.tobytes()):
                return header
        suffix = image_suffix(encoded)
        if suffix is None:
            magic = bytes(encoded[:4]).hex()
            raise UserError(f"is no JPEG, PNG, WebP, BMP, TIFF, PNM or JPEG 2000: it begins with '{magic}'")
        content = bytes(encoded)
        if suffix == ".jpg":
            header, end = _read_jpeg(content)
        else:
            header = _READERS.get(suffix, _read_any)(content, suffix)
        width, height = header.size
        if not 0 < width * height <= MOST_PIXELS:
            raise UserError(f"announces {width} x {height} pixels")
        if suffix == ".jpg":
            self._keep(content[:end], header)
        return header

    def _keep(self, start: bytes, header: Header) -> None:
        self._lengths.add(len(start))
        if len(self._lengths) > _MOST_LENGTHS or len(self._known) >= _MOST_HEADERS:  # each file has its own
            self._known, self._lengths = {}, {len(start)}
        self._known[start] = header


def _read_jpeg(content: bytes) -> tuple[Header, int]:
    """The header, and where it ends. Walks the segments up to it: ten times as quick as a library's look at all."""
    at, tables, adobe, upright = 2, b"", False, True
    try:
        while True:
            start, marker, length = _SEGMENT.unpack_from(content, at)
            if start != 0xFF:
                raise UserError(f"has no JPEG marker at byte {at}")
            if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill, or a marker without a segment
                at += 1 if marker == 0xFF else 2
                continue
            segment = content[at + 4 : at + 2 + length]
            if marker == 0xDB:
                tables = tables or segment
            adobe |= marker == _APP14 and segment.startswith(b"Adobe")
            upright &= not (marker == _APP1 and _is_turned(segment))
            if marker in _FRAMES:
                height, width, channels = _FRAME.unpack_from(content, at + 5)
                # Without Adobe's marker, DALI and others disagree on which end of CMYK is black.
                plain = upright and (channels != 4 or adobe)
                return Header(".jpg", (width, height), channels, tables, plain), at + 5 + _FRAME.size
            if length < 2 or marker in (0xD9, 0xDA):
                raise UserError("has no JPEG frame header")
            at += 2 + length
    except struct.error:
        raise UserError(f"ends within its JPEG header, after {len(content)} bytes") from None


def _is_turned(segment: bytes) -> bool:
    """Whether the camera that wrote this EXIF was not held upright."""
    if not segment.startswith(b"Exif\0"):
        return False
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1) != 1
    except Exception:  # damaged: nobody can tell how it was held
        return False


def _read_png(content: bytes, suffix: str) -> Header:
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise UserError("has no sound PNG header")
    if content.rfind(b"IEND") < 0:
        raise UserError("is a PNG that was cut off: its end (IEND) is missing")
    width, height, _, colours = struct.unpack_from(">IIBB", content, 16)
    return Header(suffix, (width, height), _PNG_CHANNELS.get(colours, 3), plain=b"eXIf" not in content)


def _read_webp(content: bytes, suffix: str) -> Header:
    """Of the plain kinds; those with alpha, several frames or EXIF are extended ones."""
    kind, at = content[12:16], 20  # of the first chunk's content
    if kind == b"VP8 " and content[at + 3 : at + 6] == b"\x9d\x01\x2a" and len(content) >= at + 10:
        width, height = struct.unpack_from("<HH", content, at + 6)
        return Header(suffix, (width & _WEBP_SIDE, height & _WEBP_SIDE), 3, plain=True)
    if kind == b"VP8L" and content[at : at + 1] == b"\x2f" and len(content) >= at + 5:
        (bits,) = struct.unpack_from("<I", content, at + 1)
        size = (bits & _WEBP_SIDE) + 1, (bits >> 14 & _WEBP_SIDE) + 1
        return Header(suffix, size, 4 if bits >> 28 & 1 else 3, plain=not bits >> 28 & 1)
    return _read_any(content, suffix)


def _read_bmp(content: bytes, suffix: str) -> Header:
    return _read_any(content, suffix)._replace(plain=True)


def _read_any(content: bytes, suffix: str) -> Header:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return Header(suffix, image.size, _CHANNELS.get(image.mode, 3))
    except Exception as error:  # Pillow's decoders raise almost any class
        raise UserError(f"has no sound {suffix} header ({error})") from None


_READERS = {".png": _read_png, ".webp": _read_webp, ".bmp": _read_bmp}
