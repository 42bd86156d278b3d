"""Copies of an image: exact ones by the hash of their bytes, near ones by a perceptual hash of what they show."""

from functools import cache

import numpy as np

_BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16)[:, None].view(np.uint8), axis=1).sum(axis=1, dtype=np.uint8)
_GRID = 9  # spots of a picture along each axis
_ROTATIONS = 4  # each word of the hash is sorted this often, each time with other bits first
_NEIGHBOURS = 8  # images that follow in the order and are compared


def byte_hash(encoded: bytes) -> int:
    """64 bits, int64, that mean something within this process only: Python's own hash, SipHash with a random key."""
    return hash(encoded)


def picture_hashes(images: np.ndarray) -> np.ndarray:
    """Difference hashes uint64 (b, 2) of images uint8 (b, h, w): is a spot brighter than its neighbour?

    Krawetz, "Kind of Like That" (2013), with the means of a 9 x 9 grid. He compares with the neighbour to the left;
    aligned faces are too much alike for that, so the second word compares with the one above.
    """
    # numpy, because torch's threads would take the cores from those that decode, if only to wait for the next call.
    _, height, width = images.shape
    columns = images.astype(np.float32).reshape(-1, width) @ _means(width)
    spots = columns.reshape(-1, height, _GRID).swapaxes(1, 2).reshape(-1, height) @ _means(height)
    spots = spots.reshape(-1, _GRID, _GRID).swapaxes(1, 2)
    brighter = np.stack([np.diff(spots, axis=2)[:, :-1] > 0, np.diff(spots, axis=1)[:, :, :-1] > 0], axis=1)
    return np.packbits(brighter.reshape(-1, 2, (_GRID - 1) ** 2), axis=2).view(np.uint64)[:, :, 0]


@cache
def _means(size: int) -> np.ndarray:
    """The matrix (size, 9) that takes the means over spots of a line of pixels. Neighbours may share pixels."""
    starts, ends = np.arange(_GRID) * size // _GRID, -(-np.arange(1, _GRID + 1) * size // _GRID)
    inside = (starts[:, None] <= np.arange(size)) & (np.arange(size) < ends[:, None])
    return np.ascontiguousarray((inside / inside.sum(axis=1, keepdims=True)).T, np.float32)


def groups_of(hashes: np.ndarray) -> list[np.ndarray]:
    """Positions (two or more each, ascending) of equal hashes (n,)."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    several = order[(np.append(same, False) | np.append(False, same))[: len(order)]]
    groups = np.split(several, np.flatnonzero(np.diff(hashes[several])) + 1)
    return groups if len(several) else []


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Pairs int64 (p, 2), i < j, of hashes uint64 (n, 2) that differ in at most ``distance`` of their 128 bits.

    Linear in n, at the price of a few missed pairs: each word is sorted with each quarter of its bits first, and those
    that come close together are compared.
    """
    found = [np.empty((0, 2), np.int64)]
    for word in hashes.T:
        for rotation in range(0, 64, 64 // _ROTATIONS):
            rotated = word << np.uint64(rotation) | word >> np.uint64((64 - rotation) % 64)
            order = np.argsort(rotated, kind="stable")
            ordered = hashes[order]
            for step in range(1, min(_NEIGHBOURS + 1, len(order))):
                near = _bits(ordered[:-step] ^ ordered[step:]) <= distance
                found.append(np.sort(np.stack([order[:-step][near], order[step:][near]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _bits(words: np.ndarray) -> np.ndarray:
    """How many bits are set in each row of uint64 (n, 2): uint64 (n,)."""
    eight_counts = _BITS[words.view(np.uint16)].view(np.uint64)[:, 0]  # a byte each
    return eight_counts * np.uint64(0x0101010101010101) >> np.uint64(56)  # their sum is the product's highest byte
