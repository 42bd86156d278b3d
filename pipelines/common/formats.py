"""The kinds of image files: the suffixes of their names, and how their bytes begin."""

import re

import numpy as np

# By the suffix that stands for the kind. What is not here (GIF, HEIC, AVIF, ...) is no image to any part of Facemill.
SUFFIXES = {
    ".jpg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    ".png": (".png",),
    ".webp": (".webp",),
    ".bmp": (".bmp", ".dib"),
    ".tif": (".tif", ".tiff"),
    ".ppm": (".ppm", ".pgm", ".pbm", ".pnm"),
    ".jp2": (".jp2", ".j2k", ".jpc"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_BEGINNINGS = {
    ".jpg": rb"\xff\xd8\xff",
    ".png": rb"\x89PNG\r\n\x1a\n",
    ".webp": rb"RIFF....WEBP",
    ".bmp": rb"BM",
    ".tif": rb"II\*\0|MM\0\*",
    ".ppm": rb"P[1-6]\s",
    ".jp2": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
}
_LONGEST = 12  # bytes of a beginning
_KINDS = {suffix: re.compile(beginning, re.DOTALL) for suffix, beginning in _BEGINNINGS.items()}


def is_image(name: str) -> bool:
    """Whether a file is an image by its name. One that begins with a dot is none, such as macOS's ``._3.jpg``."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def image_suffix(encoded: bytes | memoryview | np.ndarray) -> str | None:
    """The kind of an encoded image by its first bytes, a key of SUFFIXES; None if it is none of them."""
    start = bytes(encoded[:_LONGEST])
    return next((suffix for suffix, beginning in _KINDS.items() if beginning.match(start)), None)
