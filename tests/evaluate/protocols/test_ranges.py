import numpy as np

from evaluate.protocols.ranges import ranges


def test_ranges_are_those_of_a_loop():
    starts, ends = np.array([4, 2, 9, 0]), np.array([6, 2, 12, 1])
    row, number = ranges(starts, ends)
    wanted = [(k, x) for k, (start, end) in enumerate(zip(starts, ends)) for x in range(start, end)]
    assert list(zip(row.tolist(), number.tolist())) == wanted
