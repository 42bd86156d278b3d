"""MobileFaceNet (Chen et al., 2018) in arcface_torch's small and large form, at any width.

Tensors are named as in the checkpoints of arcface_torch.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.batch_norm import BatchNorm2d
from models.layers import PReLU, Width, downsampled, run_blocks

UNIT = 64  # channels of which all maps have a multiple, at width 1


class _Layers(nn.Module):
    """A sequence kept under ``layers``, as the published checkpoints name it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.layers(x_bchw)


class ConvBlock(_Layers):
    """Convolution, batch norm and, unless ``linear``, PReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            BatchNorm2d(out_channels),
            *([] if linear else [PReLU(out_channels)]),
        )


class Bottleneck(_Layers):
    """1×1 to ``hidden`` channels, depthwise 3×3, linear 1×1."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            ConvBlock(in_channels, hidden, 1),
            ConvBlock(hidden, hidden, 3, stride, padding=1, groups=hidden),
            ConvBlock(hidden, out_channels, 1, linear=True),
        )


class ResidualBottleneck(Bottleneck):
    """x + bottleneck(x)."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        return x_bchw + self.layers(x_bchw)


class Stage(_Layers):
    """``depth`` residual bottlenecks of one shape."""

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__(*(ResidualBottleneck(channels, hidden, channels) for _ in range(depth)))


class GlobalDepthwise(_Layers):
    """A depthwise convolution over the whole map, then a linear layer: (b, c, *sides) to (b, embedding_size)."""

    def __init__(self, channels: int, sides: tuple[int, int], embedding_size: int) -> None:
        super().__init__(
            ConvBlock(channels, channels, sides, groups=channels, linear=True),
            nn.Flatten(),
            nn.Linear(channels, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )


class MobileFaceNet(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        depths: residual bottlenecks of each stage; a first stage of one is a grouped convolution instead.
        scale: channels of the first half in units of 64; the hidden channels of the bottlenecks do not grow with it.
        width: factor on that unit, which is rounded to a multiple of 4; the last map keeps at least 512 channels, as in
            MobileNetV2.
        checkpoint_activations: recompute each layer for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        depths: Sequence[int],
        scale: int,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        width: Width = 1.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations

        unit = unit_channels(width)
        narrow, wide, last = unit * scale, 2 * unit * scale, max(512, 8 * unit)
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, narrow, 3, stride=2, padding=1),
                ConvBlock(narrow, narrow, 3, padding=1, groups=narrow // 2)
                if depths[0] == 1
                else Stage(narrow, 2 * unit, depths[0]),
                Bottleneck(narrow, 2 * unit, narrow, stride=2),
                Stage(narrow, 2 * unit, depths[1]),
                Bottleneck(narrow, 4 * unit, wide, stride=2),
                Stage(wide, 4 * unit, depths[2]),
                Bottleneck(wide, 8 * unit, wide, stride=2),
                Stage(wide, 4 * unit, depths[3]),
            ]
        )
        self.conv_sep = ConvBlock(wide, last, 1)
        side = downsampled(input_size, 4)
        self.features = GlobalDepthwise(last, (side, side), embedding_size)
        initialise(self)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x_bchw = run_blocks(self.layers, images_bchw, self.checkpoint_activations)
        return self.features(self.conv_sep(x_bchw))


def unit_channels(width: float) -> int:
    """The channels of which all maps have a multiple."""
    return max(4, round(UNIT * width / 4) * 4)


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
