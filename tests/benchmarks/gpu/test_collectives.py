"""What counts as the right sum of what ranks give."""

import pytest
import torch

from benchmarks.gpu.collectives import _equal, _random, _total


def summed(parts, order):
    """A sum in bf16 that rounds at each addition, as a ring or a tree of ranks does."""
    if order == "ring":
        out = parts[0]
        for part in parts[1:]:
            out = out + part
        return out
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


@pytest.mark.parametrize("order", ["ring", "tree"])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_sum_in_bf16_is_rounded_on_its_way(ranks, order):
    part = _random(128, 512, dtype=torch.bfloat16)
    parts = [part(rank) for rank in range(ranks)]
    ours, theirs = summed(parts, order), _total(parts, 0)
    assert _equal(ours, theirs, parts)
    assert not _equal(summed(parts[1:] + parts[:1] * 2, "ring"), theirs, parts)  # a part twice
    assert not _equal(ours - parts[-1], theirs, parts)
