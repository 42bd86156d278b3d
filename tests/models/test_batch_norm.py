"""Batch norm as it is compiled for a CPU, against PyTorch's own in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.batch_norm import BatchNorm2d
from models.layers import PReLU


def pass_through(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of the images and the parameters."""
    images = images.clone().requires_grad_()
    out = network(images)
    (out.double() * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
    return out.detach(), images.grad, *(parameter.grad for parameter in network.parameters())


@pytest.mark.parametrize("offset", [0, 300])
@pytest.mark.parametrize("layer", ["norm", "norm, PReLU"])
def test_compiled_it_computes_the_same(layer, offset):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 5, 7, 4, generator=generator) * torch.arange(1, 6)[:, None, None] + offset
    network = nn.Sequential(BatchNorm2d(5), *([PReLU(5)] if "PReLU" in layer else []))
    with torch.no_grad():
        network[0].weight.copy_(torch.linspace(-1, 1.5, 5))
        network[0].bias.copy_(torch.linspace(1, -1, 5))
        network[0].running_mean.fill_(0.9 * offset)  # as after some steps; the rest would be lost to float32 by then
        if "PReLU" in layer:
            network[1].weight.copy_(torch.linspace(-0.5, 1.5, 5))
    exact = nn.Sequential(nn.BatchNorm2d(5), *([nn.PReLU(5)] if "PReLU" in layer else []))
    exact.load_state_dict(copy.deepcopy(network.state_dict()))
    exact.double()

    called = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    found, wanted = pass_through(called, images), pass_through(exact, images.double())
    for value, exactly in zip(found, wanted, strict=True):
        scale = exactly.abs().max()
        assert (value.double() - exactly).abs().max() <= 1e-4 * scale
    for name, buffer in exact[0].named_buffers():
        torch.testing.assert_close(network[0].get_buffer(name).double(), buffer.double(), rtol=1e-4, atol=1e-5)


def test_what_is_compiled_is_not_pytorchs_own():
    """Or the test above would compare nothing."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    norm = BatchNorm2d(3)
    torch.compile(norm, backend=backend, dynamic=False)(torch.rand(4, 3, 2, 2, requires_grad=True))
    assert not any("batch_norm" in target for target in seen)
    assert int(norm.num_batches_tracked) == 1


def test_when_evaluated_it_uses_what_it_has_counted():
    norm = BatchNorm2d(3).eval()
    norm.running_mean.fill_(2.0)
    images = torch.rand(4, 3, 2, 2)
    called = torch.compile(norm, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(called(images), (images - 2) / (1 + 1e-5) ** 0.5)
    assert int(norm.num_batches_tracked) == 0
