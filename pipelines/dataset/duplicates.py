"""Copies of an image: exact ones by the hash of their bytes, near ones by a perceptual hash of what they show."""

import hashlib

import numpy as np

_ROTATIONS = 4  # the hash is sorted this often, each time with other bits first
_NEIGHBOURS = 8  # images that follow in the order and are compared
_SIDE = 9  # points of the grid whose brightness is compared


def byte_hash(encoded: np.ndarray | bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def picture_hashes(images: np.ndarray) -> np.ndarray:
    """Difference hashes uint64 (b,) of images uint8 (b, h, w, 3): is a spot brighter than the one to its left?

    Krawetz, "Kind of Like That" (2013), with the means of a 9 x 8 grid.
    """
    rows = np.linspace(0, images.shape[1], _SIDE, dtype=np.int64)[:-1]
    columns = np.linspace(0, images.shape[2], _SIDE + 1, dtype=np.int64)[:-1]
    grey = images.sum(axis=3, dtype=np.uint16)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=1, dtype=np.int64), columns, axis=2)
    areas = np.diff(np.append(rows, images.shape[1]))[:, None] * np.diff(np.append(columns, images.shape[2]))
    brighter = np.diff(sums / areas, axis=2) > 0
    return np.packbits(brighter.reshape(len(images), -1), axis=1).view(np.uint64).ravel()


def groups_of(hashes: np.ndarray) -> list[np.ndarray]:
    """Positions (two or more each, ascending) of equal hashes (n,)."""
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    return [group for group in groups if len(group) > 1]


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Pairs int64 (p, 2), i < j, of hashes uint64 (n,) that differ in at most ``distance`` bits.

    Linear in n, at the price of a few missed pairs: hashes are sorted with each quarter of their bits first, and those
    that come close together are compared.
    """
    found = [np.empty((0, 2), np.int64)]
    for rotation in range(0, 64, 64 // _ROTATIONS):
        rotated = hashes << np.uint64(rotation) | hashes >> np.uint64((64 - rotation) % 64)
        order = np.argsort(rotated, kind="stable")
        for step in range(1, min(_NEIGHBOURS + 1, len(order))):
            first, second = order[:-step], order[step:]
            near = _bits(hashes[first] ^ hashes[second]) <= distance
            found.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _bits(words: np.ndarray) -> np.ndarray:
    """How many bits are set in uint64 (n,)."""
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
