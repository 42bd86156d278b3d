"""What several backbones share: other inputs, PReLU, squeeze-excite, drop path, and blocks that are recomputed."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# What the options of backbones may be: a config is checked against the constructors' annotations.
Width = Annotated[float, Field(gt=0, le=16)]
DropRate = Annotated[float, Field(ge=0, lt=1)]

# Means and standard deviations of ImageNet's colours in [0, 1], by which many networks normalise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def downsampled(size: int, times: int) -> int:
    """Side of a map of ``size`` pixels after ``times`` 3×3 convolutions of stride 2 with padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def converted(images_bchw: Tensor, bgr: bool, unit_range: bool) -> Tensor:
    """RGB images in [-1, 1] as weights of another origin take them: with BGR channels, in [0, 1], or both."""
    if bgr:  # not `flip`: in ONNX that is a Slice with step -1, which OpenCV refuses
        images_bchw = torch.cat(images_bchw.split(1, dim=1)[::-1], dim=1)
    return images_bchw * 0.5 + 0.5 if unit_range else images_bchw


class _LeanPReLU(torch.autograd.Function):
    """PReLU by vectorised operations; PyTorch's own gradient of it is not vectorised on CPU."""

    @staticmethod
    def forward(ctx: Any, x_bchw: Tensor, slope_c11: Tensor) -> Tensor:
        ctx.save_for_backward(x_bchw, slope_c11)
        if torch.compiler.is_compiling():
            return torch.where(x_bchw > 0, x_bchw, x_bchw * slope_c11)
        if x_bchw.dtype == torch.float32:
            return torch.prelu(x_bchw, slope_c11.flatten())
        return x_bchw.relu().add_(x_bchw.clamp(max=0).mul_(slope_c11))  # prelu takes ten times as long for 16 channels

    @staticmethod
    def backward(ctx: Any, gradient_bchw: Tensor) -> tuple[Tensor, Tensor]:
        x_bchw, slope_c11 = ctx.saved_tensors
        if torch.compiler.is_compiling():
            negative = x_bchw <= 0
            products = torch.where(negative, gradient_bchw.float() * x_bchw.float(), 0.0)
            slope_gradient = products.sum((2, 3)).sum(0)  # in two steps: threads have images to share
            gradient = torch.where(negative, gradient_bchw * slope_c11, gradient_bchw)
        else:
            gradient = torch.ops.aten.threshold_backward(gradient_bchw, x_bchw, 0)
            where_negative = gradient_bchw - gradient
            slope_gradient = (where_negative * x_bchw).sum((0, 2, 3))
            gradient = gradient.add_(where_negative.mul_(slope_c11))
        return gradient, slope_gradient.to(slope_c11.dtype).view_as(slope_c11)


class PReLU(nn.PReLU):
    """PReLU of (b, c, h, w) with a slope per channel; its gradient on CPU takes half the usual time."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        if x_bchw.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x_bchw)
        return _LeanPReLU.apply(x_bchw, self.weight.to(x_bchw.dtype).view(-1, 1, 1))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all (Hu et al., Squeeze-and-Excitation, 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        mean_bc11 = x_bchw.mean((2, 3), keepdim=True)
        return x_bchw * self.fc2(self.fc1(mean_bc11).relu()).sigmoid()


class DropPath(nn.Module):
    """Drop a residual branch for a random part of the batch (Huang et al., Stochastic Depth, 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * (keep / (1 - self.p)).to(x.dtype)


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, checkpoint_activations: bool, *of_blocks: Iterable[Tensor]
) -> Tensor:
    """Apply ``blocks`` in turn; with ``checkpoint_activations`` each keeps only its input and is computed again later.

    The result, the gradients and the running statistics are those of the plain computation. ``of_blocks`` hold further
    inputs, one for each block.
    """
    for block, *more in zip(blocks, *of_blocks):
        recompute = checkpoint_activations and torch.is_grad_enabled()
        x = _checkpointed(block, x, *more) if recompute else block(x, *more)
    return x


def _checkpointed(block: nn.Module, *inputs: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler itself keeps the recomputation free of side effects
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms in here normalise as before, without counting the batch a second time in their running statistics."""
    # In training a batch norm normalises by the batch's own statistics, so its result depends on neither of the two
    # that are swapped: with momentum 0 the running ones stay, old + 0 · (new - old), and a count of None is not raised.
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    state = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, state):
            norm.momentum, norm.num_batches_tracked = momentum, count


def count_batches_once(model: nn.Module) -> None:
    """Keep batch norms that others' checkpoints compute again from counting a batch twice, as `run_blocks` does."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.register_forward_pre_hook(_before_norm)
            norm.register_forward_hook(_behind_norm, always_call=True)


def _before_norm(norm: Any, inputs: Any) -> None:
    # Within a backward pass, what runs forward is computed again.
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        norm.kept = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None


def _behind_norm(norm: Any, inputs: Any, output: Any) -> None:
    if not torch.compiler.is_compiling() and "kept" in vars(norm):
        norm.momentum, norm.num_batches_tracked = norm.kept
        del norm.kept
