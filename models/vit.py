"""Vision transformers for faces: arcface_torch's (An et al., Partial FC, 2022) and TransFace's (Dan et al., 2023).

Patches of 9×9 pixels, no class token: the embedding is made from all tokens at once. In training a part of the patches
is left out of the blocks and replaced by a learnt mask token behind them (He et al., Masked Autoencoders, 2022).
Registers are tokens of no patch, which the blocks may write to and the embedding does not see (Darcet et al., Vision
Transformers Need Registers, 2024; for faces Chettaoui et al., arXiv 2606.12036: ViT-8R is ``vit_b`` with eight).
Tensors are named as in the checkpoints of arcface_torch, TransFace and ViT-FR-Registers.
"""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import DropPath, DropRate, run_blocks
from pipelines.common.errors import UserError

PATCH_SIZE = 9


def patches_of(input_size: int, patch_size: int) -> int:
    """Patches of a square image. Raises ``UserError`` where it holds none."""
    if input_size < patch_size:
        raise UserError(f"images of {input_size} pixels hold no patch of {patch_size}: take a larger model.input_size")
    return (input_size // patch_size) ** 2


HEADS = 8

Count = Annotated[int, Field(ge=0, le=256)]


class Attention(nn.Module):
    """Multi-head self-attention over tokens (b, n, d); ``bias`` (b, heads, n, n) is added to its logits."""

    def __init__(self, dim: int, heads: int = HEADS) -> None:
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

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x_bnd: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.fc1(x_bnd)))


class Block(nn.Module):
    """Pre-normed attention and MLP, each dropped as a whole with probability ``drop_path`` in training."""

    def __init__(self, dim: int, drop_path: float, heads: int = HEADS, mlp_ratio: int = 4) -> None:
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

    def __init__(self, dim: int, patch_size: int = PATCH_SIZE) -> None:
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


class VisionTransformer(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        drop_path: probability of dropping a branch in the last block; it grows linearly from 0 in the first.
        mask_ratio: part of the patches that is masked in training.
        registers: tokens without a position that stand behind the patches in the blocks, and are dropped behind them.
        mask_registers: mask that part of patches and registers together, as the code published with ViT-8R does; else
            all registers stay, as they hold nothing of the image that could be missing.
        checkpoint_activations: recompute each block for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        drop_path: DropRate = 0.1,
        mask_ratio: DropRate = 0.1,
        registers: Count = 0,
        mask_registers: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.mask_registers = mask_registers
        self.checkpoint_activations = checkpoint_activations
        patches = patches_of(input_size, PATCH_SIZE)
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.empty(1, patches, dim))
        # A parameter that is never used would keep data-parallel training waiting for its gradient.
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim), requires_grad=mask_ratio > 0)
        self.register_tokens = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.blocks = nn.ModuleList(Block(dim, drop_path * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature = feature_head(dim, patches, embedding_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.register_tokens is not None:
            nn.init.trunc_normal_(self.register_tokens, std=0.02)
        initialise_linear(self)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of what enters the blocks, then of each block; those behind them are in none."""
        registers = [] if self.register_tokens is None else [self.register_tokens]
        first = [*self.patch_embed.parameters(), self.pos_embed, *registers]
        return [first, *(list(block.parameters()) for block in self.blocks)]

    def tokens(self, images_bchw: Tensor) -> Tensor:
        """The patches' normalised tokens (b, n, d) behind the blocks, those masked in training the mask token."""
        x_bnd = self.patch_embed(images_bchw) + self.pos_embed
        batch, patches, dim = x_bnd.shape
        if self.register_tokens is not None:
            x_bnd = torch.cat([x_bnd, self.register_tokens.to(x_bnd.dtype).expand(batch, -1, -1)], 1)
        if not self.training or self.mask_ratio == 0:
            return self.norm(run_blocks(self.blocks, x_bnd, self.checkpoint_activations))[:, :patches]
        tokens = x_bnd.shape[1]
        maskable = tokens if self.mask_registers else patches
        order_bm = torch.rand(batch, maskable, device=x_bnd.device).argsort(1)
        stay_r = torch.arange(maskable, tokens, device=x_bnd.device)
        kept_bk = torch.cat([order_bm[:, : int(maskable * (1 - self.mask_ratio))], stay_r.expand(batch, -1)], 1)
        kept_bkd = kept_bk.unsqueeze(2).expand(-1, -1, dim)
        y_bkd = self.norm(run_blocks(self.blocks, x_bnd.gather(1, kept_bkd), self.checkpoint_activations))
        return self.mask_token.to(y_bkd.dtype).expand_as(x_bnd).scatter(1, kept_bkd, y_bkd)[:, :patches]

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.feature(self.tokens(images_bchw).flatten(1))


class PatchOutput(NamedTuple):
    """What TransFace's recipe needs of a batch of b images with n patches."""

    embeddings: Tensor  # (b, embedding_size)
    patch_weights: Tensor  # (b, n), softmax of the gates: each patch's share in the embedding
    patch_std: Tensor  # (b, n), standard deviation of each gated token: a stand-in for its entropy


class TransFace(VisionTransformer):
    """A `VisionTransformer` whose tokens are gated by squeeze-excite over the patches."""

    patch_size = PATCH_SIZE

    def __init__(
        self,
        dim: int,
        depth: int,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        drop_path: DropRate = 0.1,
        mask_ratio: DropRate = 0.1,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            dim,
            depth,
            embedding_size,
            input_size,
            drop_path=drop_path,
            mask_ratio=mask_ratio,
            checkpoint_activations=checkpoint_activations,
        )
        patches = self.pos_embed.shape[1]
        self.senet = nn.Sequential(
            nn.Linear(dim * patches, patches, bias=False),
            nn.ReLU(),
            nn.Linear(patches, patches, bias=False),
            nn.Sigmoid(),
        )

    def forward_patches(self, images_bchw: Tensor) -> PatchOutput:
        """The embedding together with the weight and the standard deviation of every patch."""
        x_bnd = self.tokens(images_bchw)
        gate_bn = self.senet(x_bnd.flatten(1))
        x_bnd = x_bnd * gate_bn.unsqueeze(2)
        return PatchOutput(self.feature(x_bnd.flatten(1)), gate_bn.softmax(1), x_bnd.std(2))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.forward_patches(images_bchw).embeddings
