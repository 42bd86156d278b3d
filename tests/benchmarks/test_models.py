"""The rows of the backbone benchmark."""

import pytest
import torch

from benchmarks.models import ceiling, measure


def test_rows_say_what_was_reached():
    ways = ["plain", "channels-last bf16"]
    best = ceiling(torch.float32, torch.device("cpu"))
    rows = measure("mbf", ways, batch=2, rounds=1, ceilings={torch.float32: best, torch.bfloat16: 2 * best})
    assert [row["way"] for row in rows] == ways
    for row, most in zip(rows, (best, 2 * best)):
        assert row["forward_images_per_second"] > row["training_images_per_second"] > 0
        gmac = row["forward_mfu"] * most / row["forward_images_per_second"] / 2e9
        assert gmac == pytest.approx(0.45, rel=0.05)  # as arcface_torch counts MobileFaceNet, batch norms included
        assert row["training_mfu"] * most == pytest.approx(6e9 * gmac * row["training_images_per_second"])
    assert rows[0]["forward_speedup"] == rows[0]["training_speedup"] == 1
