"""The usual classifier head, to compare with: all logits in memory and a dense gradient, as in arcface_torch.

Its steps are those of arcface_torch's ``PartialFC_V2`` on one device: sample, normalise, logits, clamp, margin with a
straight-through gradient, softmax in place, one-hot in the backward pass, a gradient and an update of every centre,
sampled or not. One step is cheaper: the margin touches the target only, where arcface_torch's ArcFace takes the
arc cosine of all logits and the cosine of all angles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

SCALE, MARGIN = 64.0, 0.5  # ArcFace's s and m


class MaterialisedHead(nn.Module):
    """(B, d) embeddings and (B,) labels → mean ArcFace loss."""

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        sample_rate: float = 1.0,
        half: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.product_dtype = half
        self.num_classes, self.num_sampled = num_classes, max(1, int(sample_rate * num_classes))
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size, device=device).normal_(0, 0.01))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.num_sampled < self.num_classes:
            index = self._sample(labels)
            labels, weight = torch.searchsorted(index, labels), weight[index]
        with torch.autocast(embeddings.device.type, dtype=self.product_dtype, enabled=self.product_dtype is not None):
            logits = F.linear(F.normalize(embeddings), F.normalize(weight))
        logits = logits.float().clamp(-1, 1)
        rows = torch.arange(len(labels), device=labels.device)
        with torch.no_grad():
            cos = logits[rows, labels]
            moved = torch.cos(torch.acos(cos) + MARGIN)
            logits[rows, labels] = torch.where(cos > -math.cos(MARGIN), moved, cos - MARGIN * math.sin(MARGIN))
        return _CrossEntropy.apply(logits * SCALE, labels)

    @torch.no_grad()
    def _sample(self, labels: Tensor) -> Tensor:
        positive = labels.unique()
        if len(positive) >= self.num_sampled:
            return positive
        score = torch.rand(self.num_classes, device=labels.device)
        score[positive] = 2.0
        return score.topk(self.num_sampled).indices.sort().values


class _Context(FunctionCtx):
    """What ``backward`` gets."""

    saved_tensors: tuple[Tensor, Tensor]


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        logits.div_(logits.sum(1, keepdim=True))
        ctx.save_for_backward(logits, labels)
        return -logits.gather(1, labels[:, None]).clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
        logits.sub_(one_hot).div_(len(logits))
        return logits * gradient, None
