"""MobileFaceNet with the layers of its paper (Chen et al., 2018, table 1), and a variant of it with ReLU6.

Tensors are named as in `models.mobilefacenet`; `models.mobilefacenet_files` translates the published ones.
"""

import torch
from torch import Tensor, nn

from models.layers import IMAGENET_MEAN, IMAGENET_STD, Width, downsampled
from models.mobilefacenet import ConvBlock, GlobalDepthwise, MobileFaceNet, initialise, unit_channels


class PaperMobileFaceNet(MobileFaceNet):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        width: factor on the channels, 64 to 512; the last map keeps at least 512 (`MobileFaceNet`).
        portrait: see the middle six sevenths of the width alone: 112×96 of 112×112 pixels, as the paper.
        checkpoint_activations: recompute each layer for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        width: Width = 1.0,
        portrait: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            (1, 4, 6, 2), 1, embedding_size, input_size, width=width, checkpoint_activations=checkpoint_activations
        )
        self.margin = input_size // 14 if portrait else 0
        unit = unit_channels(width)
        self.layers[1] = self.second_layer(unit)
        sides = downsampled(input_size, 4), downsampled(input_size - 2 * self.margin, 4)
        self.features = GlobalDepthwise(max(512, 8 * unit), sides, embedding_size)
        initialise(self)

    def second_layer(self, channels: int) -> nn.Module:
        """The layer behind the first, on maps of the same shape."""
        return ConvBlock(channels, channels, 3, padding=1, groups=channels)

    def forward(self, images_bchw: Tensor) -> Tensor:
        return super().forward(images_bchw[..., self.margin : images_bchw.shape[-1] - self.margin])


class ReLU6MobileFaceNet(PaperMobileFaceNet):
    """`PaperMobileFaceNet` with ReLU6 for PReLU and a separable second layer, as in foamliu/MobileFaceNet.

    Args:
        imagenet: normalise the images by ImageNet's means and standard deviations, as the published weights were.
    """

    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        width: Width = 1.0,
        portrait: bool = False,
        imagenet: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            embedding_size,
            input_size,
            width=width,
            portrait=portrait,
            checkpoint_activations=checkpoint_activations,
        )
        for block in (module for module in self.modules() if isinstance(module, ConvBlock)):
            if len(block.layers) == 3:
                block.layers[2] = nn.ReLU() if block in set(self.layers[1].modules()) else nn.ReLU6()
        self.imagenet = imagenet
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        self.register_buffer("factor", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def second_layer(self, channels: int) -> nn.Module:
        """A depthwise convolution and one of 1×1."""
        return nn.Sequential(super().second_layer(channels), ConvBlock(channels, channels, 1))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return super().forward(images_bchw * self.factor + self.shift if self.imagenet else images_bchw)
