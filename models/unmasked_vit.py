"""CVLface's vision transformers for faces: patches of 8×8 pixels, of which none is masked in training.

They are those of `models.vit` but for the patches, the heads and the channels of the MLPs; tensors are named alike.
"""

from torch import Tensor

from models.layers import DropRate, run_blocks
from models.transformer import Transformer, initialise_linear

PATCH_SIZE = 8


class UnmaskedTransformer(Transformer):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Arguments are those of `Transformer`, but for the size of the patches.
    """

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
        super().__init__(
            dim,
            depth,
            heads,
            mlp_ratio,
            PATCH_SIZE,
            embedding_size,
            input_size,
            drop_path=drop_path,
            checkpoint_activations=checkpoint_activations,
        )
        initialise_linear(self)

    def embedded(self, images_bchw: Tensor, *of_blocks: list[Tensor]) -> Tensor:
        """The embeddings; each block gets its own of each list beside the tokens."""
        x_bnd = self.patch_embed(images_bchw) + self.pos_embed
        x_bnd = self.norm(run_blocks(self.blocks, x_bnd, self.checkpoint_activations, *of_blocks))
        return self.feature(x_bnd.flatten(1))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.embedded(images_bchw)
