"""The IR and IR-SE networks of AdaFace (Kim et al., 2022): IResNet's blocks with other shortcuts and another head.

Tensors are named as in the checkpoints of AdaFace.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.batch_norm import BatchNorm2d
from models.iresnet import STAGE_CHANNELS, conv3x3, plan, projection, residual_branch
from models.layers import DropRate, PReLU, converted, downsampled, run_blocks


class Block(nn.Module):
    """shortcut(x) + branch(x); the shortcut skips pixels, or is a projection where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, se: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if in_channels == out_channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = projection(in_channels, out_channels, stride)
        self.res_layer = nn.Sequential()
        for index, (name, layer) in enumerate(residual_branch(in_channels, out_channels, stride, se).items()):
            self.res_layer.add_module(name if name == "se_block" else str(index), layer)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.res_layer(x_bchw) + self.shortcut_layer(x_bchw)


class IR(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        depths: blocks of each of the four stages.
        se: squeeze-excite at the end of each branch.
        bgr: turn the RGB images into BGR first; AdaFace's published checkpoints were trained on BGR.
        dropout: probability of dropping a value before the last linear layer.
        checkpoint_activations: recompute each block for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        se: bool = False,
        bgr: bool = False,
        dropout: DropRate = 0.4,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.bgr = bgr
        self.checkpoint_activations = checkpoint_activations
        first, last = STAGE_CHANNELS[0], STAGE_CHANNELS[-1]
        self.input_layer = nn.Sequential(conv3x3(3, first), BatchNorm2d(first), PReLU(first))
        self.output_layer = nn.Sequential(
            BatchNorm2d(last),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(last * downsampled(input_size, 4) ** 2, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        self.body = nn.Sequential(*(Block(*shape, se) for stage in plan(depths) for shape in stage))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x_bchw = self.input_layer(converted(images_bchw, self.bgr, unit_range=False))
        x_bchw = run_blocks(self.body, x_bchw, self.checkpoint_activations)
        return self.output_layer(x_bchw)
