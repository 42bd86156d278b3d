"""How much of timm works: a model of each of its modules, on tensors without data."""

import re

import pytest
import timm
import torch

from models import create_model
from pipelines.common.errors import UserError

SMALLEST = r"test_|atto|femto|pico|nano|xxs|xx_small|tiny|_t\d?_|_xs|x_small|small|_s\d?_|10|18|050"


def small_one(module):
    """The name of a small model of one of timm's modules."""
    names = timm.list_models(module=module) or pytest.skip("all of it has other names now")
    ranks = SMALLEST.split("|")
    return min(names, key=lambda name: next((i for i, rank in enumerate(ranks) if re.search(rank, name)), len(ranks)))


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_a_model_of_each_family(module):
    """With either head, on images of 112 pixels, or more where it takes no others; all parameters get gradients."""
    name = f"timm/{small_one(module)}"
    worked = set()
    for pool in ("flatten", "own"):
        for size in (112, 224, 240):
            try:
                with torch.device("meta"):
                    model = create_model(name, 32, size, pool=pool).train()
                    output = model(torch.empty(2, 3, size, size))
                    output.sum().backward()
            except UserError:
                continue
            assert output.shape == (2, 32)
            assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
            worked.add(pool)
            break
    assert "own" in worked
