"""All images of a source, read and changed ahead by threads, and what is wrong with those that are bad."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import IMAGE_SUFFIXES, image_suffix
from pipelines.sources.source import Source

CHUNK = 128  # images that are read at a time
_CHUNKS_AHEAD = 4  # for each thread

Transform = Callable[[int, bytes], bytes]  # (index in the source, encoded image) -> encoded image


@dataclass(frozen=True)
class ReadImage:
    index: int
    encoded: np.ndarray  # uint8 (bytes,); empty where the image is bad
    reason: str = ""  # why; empty where the image is good


def read_all(
    source: Source, indices: np.ndarray, *, transform: Transform | None = None, threads: int | None = None
) -> Iterator[list[ReadImage]]:
    """The images ``indices`` in that order, CHUNK at a time. A few chunks for each thread are in memory at a time."""
    threads = threads or len(os.sched_getaffinity(0))
    chunks = (indices[begin : begin + CHUNK] for begin in range(0, len(indices), CHUNK))
    ahead: deque[Future[list[ReadImage]]] = deque()
    executor = ThreadPoolExecutor(threads)
    try:
        for chunk in chunks:
            source.prefetch(chunk)
            ahead.append(executor.submit(_read, source, chunk, transform))
            if len(ahead) == _CHUNKS_AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def read_leniently(source: Source, indices: np.ndarray) -> list[ReadImage]:
    """Images of which some may be unreadable."""
    try:
        encoded, _ = source.read(indices)
        return [ReadImage(index, image) for index, image in zip(indices.tolist(), encoded)]
    except (ValueError, OSError) as error:
        if len(indices) == 1:
            return [_bad(int(indices[0]), str(error))]
    return [read for at in range(len(indices)) for read in read_leniently(source, indices[at : at + 1])]


def _bad(index: int, reason: str) -> ReadImage:
    return ReadImage(index, np.empty(0, np.uint8), reason)


def _read(source: Source, indices: np.ndarray, transform: Transform | None) -> list[ReadImage]:
    images = []
    for image in read_leniently(source, indices):
        if not image.reason and not image_suffix(image.encoded):
            image = _bad(image.index, f"begins like none of {', '.join(IMAGE_SUFFIXES)}")
        if transform and not image.reason:
            try:
                changed = transform(image.index, bytes(image.encoded))
                image = ReadImage(image.index, np.frombuffer(changed, np.uint8))
            except UserError as error:
                image = _bad(image.index, str(error))
            except Exception as error:  # Pillow's decoders raise almost any class
                image = _bad(image.index, f"does not decode ({error})")
        images.append(image)
    return images
