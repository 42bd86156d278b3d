"""A source of small faces in memory, some of which may be damaged, and a loader of it."""

import cv2
import numpy as np
import torch

from pipelines.loading.loader import Batch, Loader
from pipelines.sources.memory import MemorySource

SIZE = 48
COUNT = 50
CLASSES = 7


def face(index: int, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3) RGB, smooth, so that JPEG keeps it."""
    noise = np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


ENCODED = [jpeg(face(index)) for index in range(COUNT)]
LABELS = np.arange(COUNT) % CLASSES
DAMAGED = {
    "empty": b"",
    "garbage": bytes(range(200)) * 3,
    "half": ENCODED[0][: len(ENCODED[0]) // 2],
}


class FaceSource(MemorySource):
    """``COUNT`` images in memory; those in ``unreadable`` cannot be read. Remembers what it was told to prefetch."""

    def __init__(self, replace: dict[int, bytes] | None = None, labels=LABELS, unreadable: tuple[int, ...] = ()):
        super().__init__([(replace or {}).get(index, image) for index, image in enumerate(ENCODED)], labels)
        self.unreadable = unreadable
        self.hinted: list[np.ndarray] = []
        self.reads: list[np.ndarray] = []

    def read(self, indices):
        self.reads.append(indices)
        for index in indices:
            if index in self.unreadable:
                raise OSError(f"image {index}: Input/output error")
        return super().read(indices)

    def prefetch(self, indices):
        self.hinted.append(indices)


def make(source=None, **options) -> Loader:
    options = {"batch_size": 8, "seed": 3, "image_size": SIZE, **options}
    return Loader(source or FaceSource(), **options)


def take(loader: Loader, count: int) -> list[Batch]:
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.uniforms, other.uniforms)


def decoded(index: int) -> torch.Tensor:
    """What another decoder makes of an image, (3, h, w) in [-1, 1]."""
    image = cv2.imdecode(np.frombuffer(ENCODED[index], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).sub(127.5).div(127.5)
