"""What a convolutional backbone makes of its last map before the linear layer that gives the embedding.

The pair-relation pooling is that of AFRN (Kang, Kim, Jun and Kim, "Attentional Feature-Pair Relation Networks for
Accurate Face Recognition", ICCV 2019, arXiv 1908.06255).
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

Pool = Literal["flat", "pair_relation"]
Rank = Annotated[int, Field(gt=0, le=8192)]
KeptShare = Annotated[float, Field(gt=0, le=1)]


class PairRelation(nn.Module):
    """A map (b, c, h, w) to a vector (b, rank) that sums up how the features of its places are related, by pairs.

    With the n = h·w places as features f_1 … f_n, and ∘ the product of each number with its counterpart,

        A_ij = softmax over all n² pairs of pᵀ (ReLU(Uᵀ f_i) ∘ ReLU(Vᵀ f_j))
        r    = Σ_ij A_ij · ReLU(U'ᵀ f_i) ∘ ReLU(V'ᵀ f_j)          over the K pairs of the greatest A_ij

    U and V differ, so (i, j) is not (j, i). Both sums are products of (n, rank) and (n, n) matrices; no pair is listed.
    Pairs that tie with the K-th are kept, too: which are does not depend on their order.

    What is taken from the paper is the attention, its choice of pairs and the bilinear form (Kim, Jun and Zhang, 2018).
    Open there, or not to be had, and decided here: the kept A_ij are not scaled up to a sum of 1; r goes alone into the
    linear layer, not with a feature of the whole face; every matrix has the same rank. The paper trains on triplets,
    pairs and a softmax, with larger images; here the margin head trains it like any other backbone.

    Args:
        channels: c.
        rank: columns of U, V, U' and V'.
        share: K over n², rounded up; 442 of 6561 pairs is the paper's.
    """

    def __init__(self, channels: int, rank: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.attention_u = nn.Linear(channels, rank, bias=False)
        self.attention_v = nn.Linear(channels, rank, bias=False)
        self.attention_p = nn.Parameter(torch.empty(rank))
        self.relation_u = nn.Linear(channels, rank, bias=False)
        self.relation_v = nn.Linear(channels, rank, bias=False)
        nn.init.normal_(self.attention_p, std=rank**-0.5)

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bnc = x_bchw.flatten(2).transpose(1, 2)
        places = x_bnc.shape[1]
        first_bnr = self.attention_u(x_bnc).relu() * self.attention_p
        logits_bm = (first_bnr @ self.attention_v(x_bnc).relu().transpose(1, 2)).flatten(1)
        least_b1 = logits_bm.detach().topk(math.ceil(self.share * places**2)).values[:, -1:]
        kept_bm = torch.where(logits_bm >= least_b1, logits_bm.softmax(1), 0.0)
        attention_bnn = kept_bm.unflatten(1, (places, places)).to(x_bchw.dtype)
        related_bnr = attention_bnn @ self.relation_v(x_bnc).relu()
        return (self.relation_u(x_bnc).relu() * related_bnr).sum(1)


def pooling(pool: Pool, channels: int, side: int, rank: int, share: float) -> tuple[nn.Module, int]:
    """The module from maps (b, channels, side, side) to vectors (b, n), and n.

    ``flat`` has no parameters: the vector is the map. ``rank`` and ``share`` are `PairRelation`'s.
    """
    if pool == "flat":
        return nn.Flatten(), channels * side**2
    return PairRelation(channels, rank, share), rank
