"""Copies of an image: exact ones by the hash of their bytes, near ones by a perceptual hash of what they show."""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_ROTATIONS = 4  # each word of the hash is sorted this often, each time with other bits first
_NEIGHBOURS = 8  # images that follow in the order and are compared


def byte_hash(encoded: np.ndarray | bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def picture_hashes(images: Tensor) -> np.ndarray:
    """Difference hashes uint64 (b, 2) of images uint8 (b, h, w, 3): is a spot brighter than its neighbour?

    Krawetz, "Kind of Like That" (2013), with the means of a 9 x 9 grid over the green channel. He compares with the
    neighbour to the left; aligned faces are too much alike for that, so the second word compares with the one above.
    """
    means = adaptive_avg_pool2d(images[..., 1].float(), 9)
    brighter = torch.stack([means.diff(dim=2)[:, :8] > 0, means.diff(dim=1)[:, :, :8] > 0], dim=1)
    return np.packbits(brighter.flatten(2).numpy(), axis=2).view(np.uint64)[:, :, 0]


def groups_of(hashes: np.ndarray) -> list[np.ndarray]:
    """Positions (two or more each, ascending) of equal hashes (n,)."""
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    return [group for group in groups if len(group) > 1]


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
            for step in range(1, min(_NEIGHBOURS + 1, len(order))):
                pairs = np.stack([order[:-step], order[step:]], axis=1)
                near = _bits(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= distance
                found.append(np.sort(pairs[near], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _bits(words: np.ndarray) -> np.ndarray:
    """How many bits are set in each row of uint64 (n, 2)."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)
