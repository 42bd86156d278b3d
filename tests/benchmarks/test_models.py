"""The rows of the backbone benchmark."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import ceiling, measure, needed_flop
from models import create_model


def test_rows_say_what_was_reached():
    ways = ["plain", "channels-last bf16"]
    best = ceiling(torch.float32, torch.device("cpu"))
    rows = measure("mbf", ways, batch=2, rounds=1, ceilings={torch.float32: best, torch.bfloat16: 2 * best})
    assert [row["way"] for row in rows] == ways
    for row, most in zip(rows, (best, 2 * best)):
        assert min(row["forward_images_per_second"], row["training_images_per_second"]) > 0
        gmac = row["forward_mfu"] * most / row["forward_images_per_second"] / 2e9
        assert gmac == pytest.approx(0.45, rel=0.05)  # as arcface_torch counts MobileFaceNet, batch norms included
        assert row["training_mfu"] * most == pytest.approx(6e9 * gmac * row["training_images_per_second"])
    assert rows[0]["forward_speedup"] == rows[0]["training_speedup"] == 1


@pytest.mark.parametrize("name", ["r18", "vit_t"])
def test_needed_flop_is_what_a_training_pass_executes(name):
    with torch.device("meta"):
        model, images = create_model(name), torch.empty(2, 3, 112, 112)
    with FlopCounterMode(display=False) as counter:
        model(images).square().sum().backward()
    # No gradient of the images is needed, which a backward pass of two forward passes includes.
    assert needed_flop(name)["training"] == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
