"""The images of the acceptance run: few rendered faces, moved and lit in many ways; and images that are no good."""

import io
import time
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.gpu.part import Report, Setting
from pipelines.sources.recordio_writer import write_dataset
from pipelines.synthetic import faces

SEED = 2048
_LIGHT = 0.15  # by which a picture gets darker or brighter, at most
_SHIFT = 3  # pixels by which a face moves, at most


@cache
def face(number: int) -> np.ndarray:
    """A rendered face, uint8 (112, 112, 3)."""
    return faces.render(SEED, number, 0)


def picture(number: int, variation: int) -> np.ndarray:
    """A face moved by some pixels and lit otherwise, uint8 (112, 112, 3)."""
    generator = np.random.default_rng((SEED, number, variation))
    moved = np.roll(face(number), generator.integers(-_SHIFT, _SHIFT + 1, 2), axis=(0, 1))
    return np.clip(moved * generator.uniform(1 - _LIGHT, 1 + _LIGHT), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """A file of ``kind``; a JPEG as faces are mostly kept: its colours halved in both directions, quality 95."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **({"quality": 95, "subsampling": "4:2:0"} | options))
    return content.getvalue()


def odd_images() -> dict[str, bytes]:
    """Images that a data set may hold beside ordinary ones, all of which can be read."""
    pixels = picture(0, 0)
    large = np.asarray(Image.fromarray(pixels).resize((250, 250), Image.Resampling.BICUBIC))
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    return {
        "PNG": encode(pixels, "PNG"),
        "grey": encode(grey),
        "progressive": encode(pixels, progressive=True),
        "4:4:4": encode(pixels, subsampling="4:4:4"),
        "250 pixels": encode(large),
    }


def bad_images() -> dict[str, bytes]:
    """What holds no image."""
    good = encode(picture(0, 0))
    noise = np.random.default_rng(SEED).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    return {
        "cut off in the header": good[:100],
        "garbage": noise,
        "garbage behind a JPEG's start": good[:2] + noise,
    }


def run(report: Report, setting: Setting) -> None:
    """Write the set."""
    bases, variations, identities, images = (8, 8, 32, 12) if setting.small else (64, 32, 2000, 10)
    began = time.perf_counter()
    encoded = [[encode(picture(base, number)) for number in range(variations)] for base in range(bases)]

    def images_of(identity: int) -> list[bytes]:
        base, first = encoded[identity % bases], identity // bases * images
        return [base[(first + place) % variations] for place in range(images)]

    _, count = write_dataset(setting.data, map(images_of, range(identities)))
    size = (setting.data / "train.rec").stat().st_size
    report.figure("images", count, "", identities=identities)
    report.figure("size of an image", size / count / 1024, "KiB")
    report.figure("time to write them", time.perf_counter() - began, "s")
