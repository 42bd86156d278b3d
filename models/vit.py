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

from models.layers import DropRate, run_blocks
from models.transformer import Transformer, initialise_linear

PATCH_SIZE = 9
HEADS = 8
MLP_RATIO = 4

Count = Annotated[int, Field(ge=0, le=256)]


class VisionTransformer(Transformer):
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
        super().__init__(
            dim,
            depth,
            HEADS,
            MLP_RATIO,
            PATCH_SIZE,
            embedding_size,
            input_size,
            drop_path=drop_path,
            checkpoint_activations=checkpoint_activations,
        )
        self.mask_ratio = mask_ratio
        self.mask_registers = mask_registers
        # A parameter that is never used would keep data-parallel training waiting for its gradient.
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim), requires_grad=mask_ratio > 0)
        self.register_tokens = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        nn.init.normal_(self.mask_token, std=0.02)
        if self.register_tokens is not None:
            nn.init.trunc_normal_(self.register_tokens, std=0.02)
        initialise_linear(self)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        first, *of_blocks = super().layer_parameters()
        registers = [] if self.register_tokens is None else [self.register_tokens]
        return [[*first, *registers], *of_blocks]

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
