"""Ranges of numbers behind one another, as many as there are rows, without a loop over these."""

import numpy as np


def ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the ranges [start, end), of which n are given, and the range of each: its row and itself.

    ``starts`` and ``ends`` int64 (n,); both results int64 (k,), k the sum of the lengths.
    """
    lengths = ends - starts
    row = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) + np.repeat(starts - before, lengths)
