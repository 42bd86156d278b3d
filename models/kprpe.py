"""Vision transformers whose attention knows where the face is: KPRPE.

Kim, Su, Liu, Jain and Liu, "KeyPoint Relative Position Encoding for Face Recognition", CVPR 2024, in the form of
CVLface (``rel_keypoint_splithead_unshared``), after whose checkpoints tensors are named.
"""

import math

import torch
from torch import Tensor, nn

from models.layers import DropRate
from models.transformer import Block
from models.unmasked_vit import PATCH_SIZE, UnmaskedTransformer
from pipelines.common.alignment import relative_template

LANDMARKS = 5
_REACH = 3  # distances along an axis are told apart as 0, 1, 2 to 3, and 4 or more patches
BUCKETS = (2 * _REACH + 1) ** 2


def _bucket(distance: int) -> int:
    """A distance in patches, -_REACH … _REACH: as it is where small, then by its logarithm (iRPE, Wu et al., 2021,
    eq. 18, with α = 1.9, β = 2α, γ = 8α)."""
    size, alpha = abs(distance), 1.9
    if size > alpha:
        size = min(_REACH, round(alpha + alpha * math.log(size / alpha) / math.log(8)))
    return size if distance > 0 else -size


def relation_buckets(side: int) -> Tensor:
    """int64 (n, n), n = side²: which of `BUCKETS` relations patch i has to patch j, by the rows and columns between."""
    along = torch.tensor([[_bucket(i - j) + _REACH for j in range(side)] for i in range(side)])
    rows, columns = along[:, None, :, None], along[None, :, None, :]
    return (rows * (2 * _REACH + 1) + columns).reshape(side**2, side**2)


class KeypointBlock(Block):
    """A `Block` whose attention is biased: by the relation of patch i to patch j, a bucket, and by patch i itself.

    Patch i's row of a table (b, n, heads · `BUCKETS`) has the bias for every bucket; ``buckets``, int64
    (b, heads, n, n), says which of them is that of i to j.
    """

    def forward(self, x_bnd: Tensor, table_bnm: Tensor | None = None, buckets_bhnn: Tensor | None = None) -> Tensor:
        assert table_bnm is not None and buckets_bhnn is not None
        table_bhnk = table_bnm.unflatten(2, (-1, BUCKETS)).transpose(1, 2)
        return super().forward(x_bnd, table_bhnk.gather(3, buckets_bhnn))


class KeypointTransformer(UnmaskedTransformer):
    """Images (b, 3, h, w) in [-1, 1] and landmarks to embeddings (b, embedding_size), not normalised.

    Landmarks (b, 5, 2) are (x, y) of the eyes, the tip of the nose and the corners of the mouth, what is left in the
    image first, as parts of its sides: (0, 0) is the corner of its first pixel, (1, 1) of its last. Without any, those
    of the template to which faces are aligned are taken. Arguments are those of `UnmaskedTransformer`.
    """

    wants_landmarks = True
    block = KeypointBlock

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
            embedding_size,
            input_size,
            drop_path=drop_path,
            checkpoint_activations=checkpoint_activations,
        )
        self.heads = heads
        side = input_size // PATCH_SIZE
        self.keypoint_linear = nn.Linear(2 * LANDMARKS, BUCKETS * heads * depth)
        centres = (torch.arange(side) + 0.5) / side
        self.register_buffer("places", torch.cartesian_prod(centres, centres).flip(1), persistent=False)
        self.register_buffer("template", torch.tensor(relative_template()), persistent=False)
        self.register_buffer("buckets", relation_buckets(side), persistent=False)
        self.places: Tensor  # (n, 2), (x, y) of the patches' centres
        self.buckets: Tensor  # int64 (n, n)
        self.template: Tensor  # (5, 2)
        nn.init.zeros_(self.keypoint_linear.weight)  # at first it is a transformer without landmarks
        nn.init.zeros_(self.keypoint_linear.bias)

    def forward(self, images_bchw: Tensor, landmarks_b52: Tensor | None = None) -> Tensor:
        if landmarks_b52 is None:
            landmarks_b52 = self.template.expand(len(images_bchw), -1, -1)
        away_bnm = (self.places[:, None] - landmarks_b52[:, None]).flatten(2)
        tables = self.keypoint_linear(away_bnm).chunk(len(self.blocks), 2)
        # A view; its sizes are of the input itself, which ONNX takes as such and not as numbers.
        buckets = [self.buckets.expand(landmarks_b52.size(0), self.heads, -1, -1)] * len(self.blocks)
        return self.embedded(images_bchw, list(tables), buckets)
