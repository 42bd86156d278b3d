"""Cosine scores of unit vectors: float32 in blocks, float64 for the few whose order decides a figure.

Every protocol of this room asks the same two questions of millions of scores: which of them lie near a given value, and
how do those few rank? A float32 matrix product answers the first with a known error, ``exact`` the second. ``exact`` is
symmetric and depends on nothing but the two vectors, so equal vectors tie on every machine.
"""

from collections.abc import Iterator

import numpy as np


def error_bound(dimension: int) -> float:
    """Largest difference of a float32 score to the exact one: the dot product's rounding for unit vectors.

    |fl(a.b) - a.b| <= gamma_d * sum |a_i b_i| with gamma_d about d * 2^-24 (Higham, "Accuracy and Stability of
    Numerical Algorithms", 3.1), and the sum is at most 1; four more roundings cover the inputs and the comparison.
    """
    return (dimension + 4) * 2.0**-24


def exact(a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64 scores (k,) of the pairs ``a[rows], b[columns]``, vectors (n, d) and (m, d) in float64."""
    scores = np.empty(len(rows))
    for start in range(0, len(rows), 8192):
        part = slice(start, start + 8192)
        scores[part] = np.sum(a[rows[part]] * b[columns[part]], axis=1)
    return scores


def blocks(a: np.ndarray, b: np.ndarray, rows: int = 512) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows of ``a``, float32 scores (r, m)) until all rows of ``a`` (n, d) have met all of ``b`` (m, d)."""
    b = np.ascontiguousarray(b.T, dtype=np.float32)
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        yield part, a[part].astype(np.float32) @ b


def pair_scores(vectors: np.ndarray, first: np.ndarray, second: np.ndarray, rows: int = 512) -> np.ndarray:
    """float32 scores (P,) of the pairs ``vectors[first], vectors[second]``; vectors (n, d), indices (P,).

    The pairs of ``rows`` first members at a time share one matrix product with all their second members: IJB-C's pairs
    cover a fifth of it, and products in order are many times cheaper than gathered vectors.
    """
    vectors = vectors.astype(np.float32)
    left = np.flatnonzero(np.bincount(first, minlength=len(vectors)))  # the vectors that are a first member, each once
    assert len(left) <= rows << 15, "more blocks than sixteen bits can number"
    # left[row_of[v]] == v numbers them without gaps; block k of the matrix has the rows from k * rows on.
    row_of = np.zeros(len(vectors), np.int32)
    row_of[left] = np.arange(len(left), dtype=np.int32)
    block = (row_of[first] // rows).astype(np.int16)  # numpy sorts sixteen bits by radix
    order = np.argsort(block, kind="stable")  # the pairs, block by block
    ends = np.bincount(block, minlength=1).cumsum()
    scores = np.empty(len(first), np.float32)
    column_of = np.empty(len(vectors), np.int32)
    for start, end, top in zip(np.r_[0, ends], ends, range(0, len(left), rows)):
        pairs = order[start:end]
        others = second[pairs]
        right = np.flatnonzero(np.bincount(others, minlength=len(vectors)))
        # right[column_of[v]] == v for the second members of this block; other entries are old, and are not read.
        column_of[right] = np.arange(len(right), dtype=np.int32)
        product = vectors[left[top : top + rows]] @ vectors[right].T
        scores[pairs] = product.ravel()[(row_of[first[pairs]] - top) * len(right) + column_of[others]]
    return scores


class Largest:
    """The ``count`` largest of a stream of scores, and all that lie no more than ``slack`` below the last of them.

    At any time every score above ``_floor`` is held, and the floor lies at least ``slack`` below the ``count``-th
    largest so far. That one only rises, so what was let go is never missed.
    """

    def __init__(self, count: int, slack: float = 0.0) -> None:
        assert count > 0
        self.count, self.slack = count, slack
        self._scores, self._keys = [np.empty(0, np.float32)], [np.empty(0, np.int64)]  # joined when they are pruned
        self._size = 0
        self._floor = -np.inf

    def add(self, scores: np.ndarray, first_key: int) -> None:
        """Take in scores (any shape); the keys number them from ``first_key``. Scores of -inf are no scores."""
        flat = scores.ravel()
        found = np.flatnonzero(flat > self._floor)
        self._scores.append(flat[found])
        self._keys.append(found + first_key)
        self._size += len(found)
        if self._size > 2 * self.count:
            self._prune()

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """All scores that are held, float32 (k,), and their keys, int64 (k,), by which they rise."""
        return np.concatenate(self._scores), np.concatenate(self._keys)

    def _prune(self) -> None:
        scores, keys = self.held()
        last = np.partition(scores, -self.count)[-self.count]
        # Strictly above the floor is kept, so put the floor just below what must stay.
        self._floor = np.nextafter(np.float32(last - self.slack), np.float32(-np.inf))
        keep = scores > self._floor
        self._scores, self._keys = [scores[keep]], [keys[keep]]
        self._size = len(self._scores[0])
