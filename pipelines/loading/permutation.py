"""A keyed permutation of 0 … size-1, evaluated where it is asked for: no table, no start-up cost, random access.

A Feistel network permutes the cells of the smallest grid of ⌈√size⌉ rows that holds ``size`` of them; a cell past the
end is sent through it again until it is back (cycle walking). This is the generalised Feistel cipher of Black and
Rogaway, "Ciphers with Arbitrary Finite Domains" (2002). There are fewer cells past the end than rows, so that walking
costs next to nothing; the usual power-of-two domain would take up to two passes a number.
"""

import math

import numpy as np

ROUNDS = 6  # four give a pseudorandom permutation where the round function is one (Luby and Rackoff, 1988)

_MULTIPLIERS = np.array([0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53], np.uint64)  # of MurmurHash3's 64-bit finaliser
_HALF_WORD = np.uint64(32)


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The images of ``indices``, integers in [0, size) of shape (n,), under the permutation that ``keys`` choose.

    ``keys`` is uint64 (ROUNDS,), ``size`` at most 2^63. Returns int64 (n,).
    """
    height = math.isqrt(size - 1) + 1
    width = -(-size // height)
    permuted = _network(indices.astype(np.uint64), np.uint64(height), np.uint64(width), keys)
    while len(outside := np.flatnonzero(permuted >= size)):
        permuted[outside] = _network(permuted[outside], np.uint64(height), np.uint64(width), keys)
    return permuted.astype(np.int64)


def _network(cells: np.ndarray, height: np.uint64, width: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Row and column of a cell are in turn shifted by a hash of the other."""
    row, column = np.divmod(cells, width)
    for row_key, column_key in keys.reshape(-1, 2):
        row = (row + _hash(column, row_key)) % height
        column = (column + _hash(row, column_key)) % width
    return row * width + column


def _hash(words: np.ndarray, key: np.uint64) -> np.ndarray:
    """32 well mixed bits of each word: the top of a product has seen all bits of its factors."""
    mixed = (words ^ key) * _MULTIPLIERS[0]
    mixed ^= mixed >> _HALF_WORD
    mixed *= _MULTIPLIERS[1]
    return mixed >> _HALF_WORD
