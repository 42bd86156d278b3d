"""The comparison of block sizes: it calls the kernels with each, tells what fails, and leaves the table as it was."""

import copy

import pytest
import torch

from benchmarks.blocks import compare, fastest, main
from losses.head.tile_triton import BLOCKS, Blocks
from tests.command import called

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_candidate_is_timed():
    before = copy.deepcopy(BLOCKS)
    odd = Blocks(48, 64, 4)  # not a power of two, which Triton refuses
    rows = compare(130, 5, 32, torch.float32, DEVICE, [Blocks(16, 32, 4), odd], rounds=2)
    assert before == BLOCKS
    assert [(row["kernel"], row["in_use"]) for row in rows] == [
        (kernel, in_use) for kernel in ("class_sums", "d_product") for in_use in (True, False, False)
    ]
    for row in rows:
        assert ("tflop_per_s" in row) == (row["blocks"] != str(odd)), row
    timed = [row for row in rows if row["kernel"] == "d_product" and "tflop_per_s" in row]
    assert fastest(rows, "d_product") == min(timed, key=lambda row: row["milliseconds"])["blocks"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    ended = called(main)
    assert ended.code == 2 and "there is none here" in ended.error
