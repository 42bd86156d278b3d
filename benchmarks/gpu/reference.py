"""The classifier written down a second time, as the papers have it: all logits, in float64, by autograd."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

S, M = 64.0, 0.5
RATE = 0.01  # of CurricularFace's t
_COS, _SIN = math.cos(M), math.sin(M)


def loss(margin: str, embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of (B, d) embeddings in their first batch.

    ``arcface`` (Deng et al., CVPR 2019), continued beyond π as the usual implementations do; ``curricularface`` (Huang
    et al., CVPR 2020), whose t comes from this batch alone.
    """
    cosines = F.normalize(embeddings) @ F.normalize(weight).T
    rows = torch.arange(len(labels), device=labels.device)
    own = cosines[rows, labels]
    moved = own * _COS - (1 - own.square()).clamp_min(1e-30).sqrt() * _SIN
    target = torch.where(own > -_COS, moved, own - M * _SIN)
    if margin == "curricularface":
        t = RATE * own.detach().mean()
        hard = cosines > target.detach()[:, None]
        cosines = torch.where(hard, cosines * (t + cosines), cosines)
    logits = S * cosines.index_put((rows, labels), target)
    return F.cross_entropy(logits, labels)


def step(
    margin: str, embeddings: Tensor, weight: Tensor, labels: Tensor, *, lr: float, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, the gradient of the embeddings (B, d), and the centres (C, d) after a first step of SGD; all float64."""
    embeddings = embeddings.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    value = loss(margin, embeddings, weight, labels)
    d_embeddings, d_weight = torch.autograd.grad(value, [embeddings, weight])
    return value.detach(), d_embeddings, weight.detach() - lr * (d_weight + weight_decay * weight.detach())


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of ``theirs``."""
    return ((ours.double() - theirs).norm() / theirs.norm()).item()
