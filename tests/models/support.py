"""Backbones small enough for tests of files, and how to compare them."""

import numpy as np
import torch
from torch import nn

from models import create_model

CENTRES = torch.rand(10, 32)


def new(name="mbf", **options):
    """A small backbone; MobileFaceNets are narrow."""
    narrow = {"width": 0.25} if name == "mbf" else {}
    return create_model(name, embedding_size=32, input_size=32, **narrow | options)


def small(name="mbf", **options):
    """A backbone whose every tensor differs from that of a new one."""
    model = new(name, **options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 0.1)
    return model.eval()


def same(a, b):
    a, b = (m if isinstance(m, dict) else m.state_dict() for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(found, expected, tolerance=1e-4):
    """As wholes: the length of the difference, relative to that of what is expected."""
    expected = np.asarray(expected)
    assert np.linalg.norm(found.detach().numpy() - expected) <= tolerance * np.linalg.norm(expected)


def with_statistics(model):
    """The model in evaluation mode, its batch norms no longer the identity, its maps of one magnitude."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
