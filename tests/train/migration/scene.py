"""Weights and batches for a replay, the same on every machine: from raw words of Philox, which NumPy keeps for good."""

import math
import zlib

import numpy as np
import torch


def uniforms(count, *key):
    """float32 (count,) in [0, 1), multiples of 2⁻²⁴."""
    raw = np.random.Philox(key=zlib.crc32(repr(key).encode())).random_raw(-(-count // 2))
    words = np.stack([raw & 0xFFFFFFFF, raw >> np.uint64(32)], 1).ravel()[:count]
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def spread(shape, std, *key):
    values = uniforms(math.prod(shape), *key).reshape(shape)
    return torch.from_numpy((values - np.float32(0.5)) * np.float32(std * math.sqrt(12)))


@torch.no_grad()
def set_weights(backbone):
    """Weights by their names: both codes call them the same."""
    for name, p in backbone.named_parameters():
        if p.ndim == 4:
            p.copy_(spread(p.shape, math.sqrt(2 / p[0].numel()), name))
        elif p.ndim == 2:
            p.copy_(spread(p.shape, p.shape[1] ** -0.5, name))
        elif "prelu" in name or name.endswith("layers.2.weight"):
            p.fill_(0.25)
        else:
            p.fill_(0.0 if name.endswith("bias") else 1.0)


@torch.no_grad()
def set_centres(weight, start=0):
    """Centres of the classes from ``start`` on."""
    for row in range(len(weight)):
        weight[row] = spread(weight.shape[1:], 0.01, "centre", start + row)


def batch(step, size, classes, side=112):
    """Images (size, 3, side, side) of a coarse pattern for each class, with noise, and labels."""
    labels = (uniforms(size, "labels", step) * classes).astype(np.int64)
    coarse = np.stack([uniforms(3 * 7 * 7, "face", int(label)).reshape(3, 7, 7) for label in labels])
    images = np.kron(coarse, np.ones((1, 1, side // 7, side // 7), np.float32))
    images = 0.6 * images + 0.4 * uniforms(size * 3 * side * side, "noise", step).reshape(images.shape)
    return torch.from_numpy(2 * images - 1), torch.from_numpy(labels)
