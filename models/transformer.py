"""What the vision transformers for faces have in common: patches, blocks, an embedding made from all tokens at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import DropPath
from pipelines.common.errors import UserError


def patches_of(input_size: int, patch_size: int) -> int:
    """Patches of a square image. Raises ``UserError`` where it holds none."""
    if input_size < patch_size:
        raise UserError(f"images of {input_size} pixels hold no patch of {patch_size}: take a larger model.input_size")
    return (input_size // patch_size) ** 2


class Attention(nn.Module):
    """Multi-head self-attention over tokens (b, n, d); ``bias`` (b, heads, n, n) is added to its logits."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_bnd: Tensor, bias_bhnn: Tensor | None = None) -> Tensor:
        qkv_bn3hd = self.qkv(x_bnd).unflatten(2, (3, self.heads, -1))
        q_bhnd, k_bhnd, v_bhnd = qkv_bn3hd.permute(2, 0, 3, 1, 4).unbind(0)
        y_bhnd = F.scaled_dot_product_attention(q_bhnd, k_bhnd, v_bhnd, bias_bhnn)
        return self.proj(y_bhnd.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with ``ratio`` times as many channels and a ReLU6 in between."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x_bnd: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.fc1(x_bnd)))


class Block(nn.Module):
    """Pre-normed attention and MLP, each dropped as a whole with probability ``drop_path`` in training."""

    def __init__(self, dim: int, drop_path: float, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_bnd: Tensor, bias_bhnn: Tensor | None = None) -> Tensor:
        x_bnd = x_bnd + self.drop_path(self.attn(self.norm1(x_bnd), bias_bhnn))
        return x_bnd + self.drop_path(self.mlp(self.norm2(x_bnd)))


class PatchEmbed(nn.Module):
    """Images (b, 3, h, w) to tokens (b, n, d), row by row."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.proj(images_bchw).flatten(2).transpose(1, 2)


def feature_head(dim: int, patches: int, embedding_size: int) -> nn.Sequential:
    """From the tokens of all patches, (b, patches · dim), to the embedding (b, embedding_size)."""
    return nn.Sequential(
        nn.Linear(dim * patches, dim, bias=False),
        nn.BatchNorm1d(dim, eps=2e-5),
        nn.Linear(dim, embedding_size, bias=False),
        nn.BatchNorm1d(embedding_size, eps=2e-5),
    )


def initialise_linear(model: nn.Module) -> None:
    """Fresh weights of all linear layers of a transformer."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Transformer(nn.Module):
    """The base of vision transformers for faces: what stands before their blocks, the blocks, what makes embeddings.

    A subclass ends its own ``__init__`` with `initialise_linear`: the weights of a seed depend on the order in which
    they are drawn, and those of linear layers come last.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: channels within a block's MLP, in units of ``dim``.
        patch_size: side of a patch in pixels.
        drop_path: probability of dropping a branch in the last block; it grows linearly from 0 in the first.
        checkpoint_activations: recompute each block for the gradient instead of storing its activations.
    """

    block: type[Block] = Block

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        patch_size: int,
        embedding_size: int,
        input_size: int,
        *,
        drop_path: float,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        patches = patches_of(input_size, patch_size)
        self.patch_embed = PatchEmbed(dim, patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, patches, dim))
        self.blocks = nn.ModuleList(
            self.block(dim, drop_path * i / (depth - 1), heads, mlp_ratio) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.feature = feature_head(dim, patches, embedding_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of what enters the blocks, then of each block; those behind them are in none."""
        first = [*self.patch_embed.parameters(), self.pos_embed]
        return [first, *(list(block.parameters()) for block in self.blocks)]
