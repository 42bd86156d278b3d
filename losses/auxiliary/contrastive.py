"""ContraFace's contrastive loss (CoReFace, Song and Wang, 2023): two views of a batch, a margin that adapts itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.head.collective import sum_ranks, world_size

_SCALE = 64.0  # of the cosines


class AdaptiveContrast(nn.Module):
    """Cross-entropy of view 1's samples over view 2's, with the margin m on the own pair.

    The margin, one for all ranks, follows the mean gap between a sample's own pair and its hardest negative,
    m ← momentum·m + (1 - momentum)·gap. The published code has the two factors reversed, so that its margin has no
    memory; this is the paper's direction, and ``momentum=0.01`` is the code's.

    Args:
        momentum: weight of the past; m starts at 0.
    """

    margin: Tensor

    def __init__(self, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("margin", torch.tensor(0.0))

    def forward(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        """(n, d) embeddings of the two views and (n,) labels → mean loss; pairs of one class are no negatives."""
        with torch.autocast(first.device.type, enabled=False):  # _SCALE times the error of a cosine is that of a logit
            cos = F.normalize(first.float()) @ F.normalize(second.float()).T
        own = torch.eye(len(cos), dtype=torch.bool, device=cos.device)
        excluded = (labels[:, None] == labels) & ~own
        with torch.no_grad():
            hardest = cos.masked_fill(excluded | own, -1.0).amax(1)
            gap = sum_ranks((cos.diagonal() - hardest).mean()) / world_size()
            # One gap that is not finite (of a step that will not be taken) would stay in the margin for good.
            self.margin.copy_(torch.where(gap.isfinite(), self.margin.lerp(gap, 1 - self.momentum), self.margin))
        logits = _SCALE * (cos - self.margin * own)
        return F.cross_entropy(logits.masked_fill(excluded, -torch.inf), torch.arange(len(cos), device=cos.device))
