"""Backbones small enough for tests of files, and how to compare them."""

import torch

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
