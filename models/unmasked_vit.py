"""CVLface's vision transformers for faces: patches of 8×8 pixels, of which none is masked in training.

They are those of `models.vit` but for the patches, the heads and the channels of the MLPs; tensors are named alike.
"""

import torch
from torch import Tensor, nn

from models.layers import DropRate, run_blocks
from models.vit import Block, PatchEmbed, feature_head, initialise_linear, patches_of

PATCH_SIZE = 8


class UnmaskedTransformer(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: channels within a block's MLP, in units of ``dim``.
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
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        drop_path: DropRate = 0.1,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        patches = patches_of(input_size, PATCH_SIZE)
        self.patch_embed = PatchEmbed(dim, PATCH_SIZE)
        self.pos_embed = nn.Parameter(torch.empty(1, patches, dim))
        self.blocks = nn.ModuleList(
            self.block(dim, drop_path * i / (depth - 1), heads, mlp_ratio) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.feature = feature_head(dim, patches, embedding_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        initialise_linear(self)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of what enters the blocks, then of each block; those behind them are in none."""
        first = [*self.patch_embed.parameters(), self.pos_embed]
        return [first, *(list(block.parameters()) for block in self.blocks)]

    def embedded(self, images_bchw: Tensor, *of_blocks: list[Tensor]) -> Tensor:
        """The embeddings; each block gets its own of each list beside the tokens."""
        x_bnd = self.patch_embed(images_bchw) + self.pos_embed
        x_bnd = self.norm(run_blocks(self.blocks, x_bnd, self.checkpoint_activations, *of_blocks))
        return self.feature(x_bnd.flatten(1))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.embedded(images_bchw)
