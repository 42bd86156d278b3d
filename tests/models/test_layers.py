"""Layers that backbones share, against PyTorch's or their definition."""

import pytest
import torch
from torch import nn

from models import create_model
from models.layers import DropPath, PReLU


def test_prelu_is_pytorchs():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64).requires_grad_()
    mine, theirs = PReLU(5).double(), nn.PReLU(5).double()
    for slope in (torch.rand(5), -torch.rand(5), 2 * torch.rand(5)):
        results = []
        for module in (mine, theirs):
            with torch.no_grad():
                module.weight.copy_(slope)
            x.grad = module.weight.grad = None
            y = module(x)
            (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum().backward()
            results.append((y.detach(), x.grad, module.weight.grad))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 3, 2))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == y[:, :1, :1]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(y), y)


def test_squeeze_excite_of_few_channels_has_one_at_least():
    model = create_model("r18", 16, 32, width=0.125, se=True).eval()  # 8 channels in the first stage
    assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
