"""IResNet: the residual network of ArcFace (Deng et al., 2019), 18 to 2060 layers deep, also with squeeze-excite.

Tensors are named as in the checkpoints of arcface_torch and ContraFace.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from models.batch_norm import BatchNorm2d
from models.layers import DropRate, PReLU, SqueezeExcite, Width, converted, downsampled, run_blocks
from models.pooling import KeptShare, Pool, Rank, pooling

STAGE_CHANNELS = (64, 128, 256, 512)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def residual_branch(in_channels: int, out_channels: int, stride: int, se: bool) -> dict[str, nn.Module]:
    """The pre-activated branch of an "improved residual" block, in the order it is applied."""
    return {
        "bn1": BatchNorm2d(in_channels),
        "conv1": conv3x3(in_channels, out_channels),
        "bn2": BatchNorm2d(out_channels),
        "prelu": PReLU(out_channels),
        "conv2": conv3x3(out_channels, out_channels, stride),
        "bn3": BatchNorm2d(out_channels),
        "se_block": SqueezeExcite(out_channels) if se else nn.Identity(),
    }


class Skipping(nn.Conv2d):
    """A 1×1 convolution of the pixels that a stride leaves.

    For the gradient of few channels, channels-last, oneDNN's own of stride 2 (PyTorch 2.13, with AVX-512) writes past
    the end of its memory, which ends the process.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)
        self.skip = stride

    def forward(self, x_bchw: Tensor) -> Tensor:
        return super().forward(x_bchw[:, :, :: self.skip, :: self.skip])


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a block that changes the shape."""
    return nn.Sequential(
        Skipping(in_channels, out_channels, stride)
        if in_channels < 16
        else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        BatchNorm2d(out_channels),
    )


def plan(depths: Sequence[int], widths: Sequence[int] = STAGE_CHANNELS) -> Iterator[list[tuple[int, int, int]]]:
    """For each stage its blocks as (in_channels, out_channels, stride): the first of a stage halves the map."""
    in_channels = widths[0]
    for channels, depth in zip(widths, depths):
        yield [(in_channels, channels, 2)] + [(channels, channels, 1)] * (depth - 1)
        in_channels = channels


class Block(nn.Module):
    """x + branch(x); the shortcut is a projection in the first block of a stage."""

    bn1: nn.Module
    conv1: nn.Module
    bn2: nn.Module
    prelu: nn.Module
    conv2: nn.Module
    bn3: nn.Module
    se_block: nn.Module

    def __init__(self, in_channels: int, out_channels: int, stride: int, se: bool) -> None:
        super().__init__()
        for name, layer in residual_branch(in_channels, out_channels, stride, se).items():
            self.add_module(name, layer)
        self.downsample = projection(in_channels, out_channels, stride) if stride > 1 else nn.Identity()

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = self.prelu(self.bn2(self.conv1(self.bn1(x_bchw))))
        y_bchw = self.se_block(self.bn3(self.conv2(y_bchw)))
        return y_bchw + self.downsample(x_bchw)


class IResNet(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        depths: blocks of each of the four stages.
        width: factor on their channels, 64 to 512, which are rounded to multiples of 8.
        dropout: probability of dropping a value before the last linear layer; ``model.dropout.p`` may be changed later,
            as the recipe ``contraface`` does.
        se: squeeze-excite at the end of each branch.
        bgr: turn the RGB images into BGR first; MagFace's published checkpoints were trained on BGR,
        unit_range: and in [0, 1].
        pool: what the last linear layer sees of the last map: all of it, or the relations of its places by pairs,
        pair_rank, pair_share: which are `PairRelation`'s.
        checkpoint_activations: recompute each block for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        width: Width = 1.0,
        dropout: DropRate = 0.0,
        se: bool = False,
        bgr: bool = False,
        unit_range: bool = False,
        pool: Pool = "flat",
        pair_rank: Rank = 512,
        pair_share: KeptShare = 442 / 6561,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.bgr, self.unit_range = bgr, unit_range
        self.checkpoint_activations = checkpoint_activations
        widths = [max(8, round(channels * width / 8) * 8) for channels in STAGE_CHANNELS]
        first, last = widths[0], widths[-1]
        self.conv1 = conv3x3(3, first)
        self.bn1 = BatchNorm2d(first)
        self.prelu = PReLU(first)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(Block(*shape, se) for shape in stage)) for stage in plan(depths, widths)
        )
        self.bn2 = BatchNorm2d(last)
        self.dropout = nn.Dropout(dropout)
        self.pool, pooled = pooling(pool, last, downsampled(input_size, 4), pair_rank, pair_share)
        self.fc = nn.Linear(pooled, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        # The margin loss normalises every embedding, so a scale per dimension would only undo the batch norm.
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def trunk(self, images_bchw: Tensor) -> Tensor:
        """The map before the dropout, (b, c, h/16, w/16); `head` may be applied to it more than once."""
        x_bchw = self.prelu(self.bn1(self.conv1(converted(images_bchw, self.bgr, self.unit_range))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_bchw = run_blocks(stage, x_bchw, self.checkpoint_activations)
        return self.bn2(x_bchw)

    def head(self, x_bchw: Tensor) -> Tensor:
        """The embedding (b, embedding_size) of the trunk's map, with a dropout mask of its own."""
        return self.features(self.fc(self.dropout(self.pool(x_bchw))))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.head(self.trunk(images_bchw))
