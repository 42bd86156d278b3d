"""EdgeFace (George et al., IEEE T-BIOM 2024, arXiv 2307.01838): timm's EdgeNeXt with linear layers of a low rank.

Tensors are named as in the checkpoints of otroshi/edgeface.
"""

from torch import Tensor, nn

from models.timm_backbone import TimmBackbone


class LowRankLinear(nn.Module):
    """Two linear layers in place of one: (…, in_features) to (…, rank) to (…, out_features); LoRaLin in the paper."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_features, rank, bias=False)
        self.linear2 = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))


class EdgeFace(TimmBackbone):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        model_name: timm's EdgeNeXt.
        gamma: the rank of a linear layer as a share of the smaller of its two sizes; None leaves the layers whole.
        checkpoint_activations: recompute each block for the gradient instead of storing its activations.
    """

    def __init__(
        self,
        model_name: str,
        gamma: float | None,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            model_name, embedding_size, input_size, pool="own", checkpoint_activations=checkpoint_activations
        )
        if gamma is None:
            return
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear):  # the one that gives the embedding, too
                sizes = module.in_features, module.out_features
                low = LowRankLinear(*sizes, rank=max(2, int(min(sizes) * gamma)), bias=module.bias is not None)
                self.model.set_submodule(name, low)
