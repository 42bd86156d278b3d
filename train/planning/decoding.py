"""How many threads decode, and how far ahead, where a config says ``auto``."""

from typing import Literal

_MOST_THREADS = 8  # a rank: they decode several times what the fastest GPU takes
_IMAGES_AHEAD, _MOST_BATCHES = 512, 16


def decoding_threads(threads: int | Literal["auto"], cores: int, gpu: bool) -> int:
    """Decoding threads of a rank that has so many ``cores``.

    A GPU's launches need a core for themselves. On a CPU training and decoding take turns on all of them.
    """
    if threads != "auto":
        return threads
    return max(1, min(_MOST_THREADS, cores - 1 if gpu else cores))


def batches_ahead(prefetch: int | Literal["auto"], batch_size: int) -> int:
    """Batches decoded ahead: three at least, and of small ones so many that a late batch is not noticed."""
    if prefetch != "auto":
        return prefetch
    return max(3, min(_MOST_BATCHES, -(-_IMAGES_AHEAD // batch_size)))
