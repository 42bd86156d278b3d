"""Batch norm whose compiled form is fast on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn


class _Normalised(torch.autograd.Function):
    """x (b, c, h, w) normalised by the batch; also the mean and the variance, each (c,), which have no gradient.

    The sums are of values less a ``shift`` (c,) near their mean, which keeps their squares from cancelling each other,
    first of each image, then of the batch: so they are short, and threads have images to share.
    """

    @staticmethod
    def forward(
        ctx: Any, x_bchw: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        share = x_bchw.shape[1] / x_bchw.numel()  # multiplied by: a division in the loop would be most of its time
        shifted = x_bchw.float() - _per_channel(shift)
        mean = _sum(shifted) * share
        variance = (_sum(shifted * shifted) * share - mean * mean).clamp_min(0)
        mean = mean + shift
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        y_bchw = x_bchw.float() * _per_channel(scale) + _per_channel(bias - mean * scale)
        ctx.save_for_backward(x_bchw, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return y_bchw.to(x_bchw.dtype), mean, variance

    @staticmethod
    def backward(
        ctx: Any, gradient_bchw: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_bchw, weight, mean, inverse = ctx.saved_tensors
        share = x_bchw.shape[1] / x_bchw.numel()
        gradient, centred = gradient_bchw.float(), x_bchw.float() - _per_channel(mean)
        of_bias = _sum(gradient)
        of_weight = _sum(gradient * centred) * inverse
        scale = weight * inverse
        of_x = _per_channel(scale) * gradient
        of_x = (
            of_x - _per_channel(scale * inverse * of_weight * share) * centred - _per_channel(scale * of_bias * share)
        )
        return of_x.to(x_bchw.dtype), of_weight, of_bias, None, None


def _per_channel(values_c: Tensor) -> Tensor:
    return values_c[:, None, None]


def _sum(values_bchw: Tensor) -> Tensor:
    return values_bchw.sum((2, 3)).sum(0)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, of which ``torch.compile`` makes vectorised, parallel loops on a CPU.

    PyTorch's own becomes one chain of dependent steps over all pixels of all images, for a group of channels.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x_bchw: Tensor) -> Tensor:
        lean = torch.compiler.is_compiling() and x_bchw.device.type == "cpu" and self.training
        if not lean:
            return super().forward(x_bchw)
        y_bchw, mean, variance = _Normalised.apply(x_bchw, self.weight, self.bias, self.running_mean.clone(), self.eps)
        count = x_bchw.numel() // x_bchw.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y_bchw
