"""One small picture in every kind of file that is read, in kinds that are not, and damaged."""

import io
import zlib

import cv2
import numpy as np
from PIL import Image

SIDE = 64
_ORIENTATION = 0x0112


def picture(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """uint8 (side, side, 3), smooth, without symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def _save(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _cv(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _without_adobe(encoded: bytes) -> bytes:
    at = encoded.index(b"\xff\xee")
    return encoded[:at] + encoded[at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big") :]


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def kinds() -> dict[str, bytes]:
    """Those that OpenCV decodes."""
    colour = Image.fromarray(picture())
    grey, palette, clear = colour.convert("L"), colour.convert("P"), colour.convert("RGBA")
    clear.putalpha(grey)
    deep = np.random.default_rng(1).integers(0, 1 << 16, (SIDE, SIDE, 3), np.uint16)
    return {
        "jpeg": _save(colour, "JPEG"),
        "jpeg progressive": _save(colour, "JPEG", progressive=True),
        "jpeg 4:4:4": _save(colour, "JPEG", subsampling=0),
        "jpeg grey": _save(grey, "JPEG"),
        "jpeg restarts": _save(colour, "JPEG", restart_marker_rows=1),
        "jpeg cmyk": _save(colour.convert("CMYK"), "JPEG"),
        "jpeg cmyk without its marker": _without_adobe(_save(colour.convert("CMYK"), "JPEG")),
        **{f"jpeg turned {n}": _save(colour, "JPEG", exif=_turned(n)) for n in range(1, 9)},
        "png": _save(colour, "PNG"),
        "png grey": _save(grey, "PNG"),
        "png black and white": _save(colour.convert("1"), "PNG"),
        "png palette": _save(palette, "PNG"),
        "png palette with transparency": _save(palette, "PNG", transparency=3),
        "png alpha": _save(clear, "PNG"),
        "png grey and alpha": _save(clear.convert("LA"), "PNG"),
        "png 16 bits": _cv(".png", deep),
        "png 16 bits grey": _cv(".png", deep[..., 0]),
        "png turned": _save(colour, "PNG", exif=_turned(6)),
        "bmp": _save(colour, "BMP"),
        "bmp grey": _save(grey, "BMP"),
        "bmp palette": _save(palette, "BMP"),
        "bmp 32 bits": _cv(".bmp", np.dstack([picture(), picture()[..., :1]])),
        "webp": _save(colour, "WEBP"),
        "webp lossless": _save(colour, "WEBP", lossless=True),
        "webp alpha": _save(clear, "WEBP"),
        "webp lossless alpha": _save(clear, "WEBP", lossless=True, exact=True),
        "webp animated": _save(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "tiff": _save(colour, "TIFF"),
        "tiff lzw": _save(colour, "TIFF", compression="tiff_lzw"),
        "tiff deflate": _save(colour, "TIFF", compression="tiff_adobe_deflate"),
        "tiff grey": _save(grey, "TIFF"),
        "tiff palette": _save(palette, "TIFF"),
        "tiff 16 bits grey": _cv(".tiff", deep[..., 0]),
        "tiff 16 bits": _cv(".tiff", deep),
        "ppm": _save(colour, "PPM"),
        "pgm": _save(grey, "PPM"),
        "pbm": _save(colour.convert("1"), "PPM"),
        "pgm 16 bits": _cv(".pgm", deep[..., 0]),
        "jpeg 2000": _save(colour, "JPEG2000"),
        "jpeg 2000 grey": _save(grey, "JPEG2000"),
        "jpeg 2000 codestream": _save(colour, "JPEG2000", no_jp2=True),
    }


def foreign() -> dict[str, bytes]:
    """What is no image, or none that is read."""
    sound = kinds()
    colour = Image.fromarray(picture())
    return {
        "empty": b"",
        "one byte": b"\xff",
        "text": b"this is no image",
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
        "zeros": bytes(4000),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(range(256)) * 8,
        "gif": _save(colour, "GIF"),
        "tga": _save(colour, "TGA"),
        "ico": _save(colour, "ICO"),
        "newline before a jpeg": b"\n" + sound["jpeg"],
        "head of a jpeg": sound["jpeg"][:200],
        "start of a jpeg": sound["jpeg"][:4],
        "damaged jpeg head": sound["jpeg"][:2] + bytes(40) + sound["jpeg"][42:],
        "half a jpeg": sound["jpeg"][: len(sound["jpeg"]) // 2],
        "png cut in its pixels": sound["png"][: len(sound["png"]) // 2],
        "png without its end": sound["png"][:-12],
        "png head": sound["png"][:30],
        "webp head": sound["webp"][:20],
        "half a webp": sound["webp"][: len(sound["webp"]) // 2],
        "bmp head": sound["bmp"][:30],
        "half a bmp": sound["bmp"][: len(sound["bmp"]) // 2],
        "half a tiff": sound["tiff"][: len(sound["tiff"]) // 2],
        "half a jpeg 2000": sound["jpeg 2000"][: len(sound["jpeg 2000"]) // 2],
        "floating-point tiff": _save(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "huge jpeg": _announcing(sound["jpeg"], 20000),
        "huge png": _announcing_png(sound["png"], 20000),
    }


def _announcing(jpeg: bytes, side: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + side.to_bytes(2, "big") * 2 + jpeg[at + 4 :]


def _announcing_png(png: bytes, side: int) -> bytes:
    head = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]
