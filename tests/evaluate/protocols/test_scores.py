import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.protocols.scores import Largest, blocks, error_bound, exact, pair_scores


def unit(rng, n, d):
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_float32_scores_lie_within_the_error_bound():
    rng = np.random.default_rng(0)
    a, b = unit(rng, 700, 512), unit(rng, 90, 512)
    truth = a @ b.T
    seen = np.concatenate([scores for _, scores in blocks(a, b, rows=256)])
    assert seen.dtype == np.float32 and seen.shape == truth.shape
    assert np.abs(seen - truth).max() < error_bound(512)


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_pair_scores_are_in_the_order_of_the_pairs(rows):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 60, 16)
    first, second = rng.integers(0, 60, (2, 500))  # repeated, swapped and self pairs
    expected = np.einsum("ij,ij->i", vectors[first], vectors[second])
    np.testing.assert_allclose(pair_scores(vectors, first, second, rows), expected, atol=error_bound(16))


def test_exact_ties_are_exact():
    rng = np.random.default_rng(2)
    vectors = unit(rng, 50, 512)
    vectors[7] = vectors[3]
    i = np.array([3, 7, 11, 11])
    j = np.array([11, 11, 3, 7])
    assert len(set(exact(vectors, vectors, i, j))) == 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(-30, 30), min_size=1, max_size=20), min_size=1, max_size=20),
    st.integers(1, 8),
    st.sampled_from([0.0, 2.0]),
)
def test_largest_keeps_the_largest_of_a_stream(chunks, count, slack):
    largest, start = Largest(count, slack), 0
    for chunk in chunks:
        largest.add(np.array(chunk, np.float32), start)
        start += len(chunk)
    everything = np.concatenate([np.array(chunk, np.float32) for chunk in chunks])
    wanted = np.sort(everything)[::-1]
    last = wanted[min(count, len(wanted)) - 1]
    must_stay = set(np.flatnonzero(everything >= last - slack))
    scores, keys = largest.held()
    assert must_stay <= set(keys)
    np.testing.assert_array_equal(everything[keys], scores)
    np.testing.assert_array_equal(np.sort(scores)[::-1][:count], wanted[:count])
