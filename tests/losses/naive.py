"""Margin losses as their definitions read, in float64, from full logits: what the head is compared with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor, Tensor], Tensor]


def arc(s: float, m: float) -> Logits:
    """ArcFace on a cosine matrix (B, C) with labels (B,), by angles, one row at a time."""

    def logits(cos: Tensor, labels: Tensor) -> Tensor:
        out = []
        for row, y in zip(cos, labels):
            theta = torch.acos(row[y])
            target = torch.cos(theta + m) if theta + m <= math.pi else row[y] - m * math.sin(m)
            out.append(torch.where(torch.arange(len(row)) == y, target, row) * s)
        return torch.stack(out)

    return logits


def cos(s: float, m: float) -> Logits:
    """CosFace."""
    return lambda c, labels: s * (c - m * F.one_hot(labels, c.shape[1]))


def head(
    embeddings: Tensor, centres: Tensor, labels: Tensor, logits: Logits, weights: Tensor | None = None, classes=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d loss/d embeddings, d loss/d centres; rows of label -1 left out; ``classes``: the ones that take part."""
    x = embeddings.double().requires_grad_()
    w = centres.double().requires_grad_()
    keep = labels >= 0
    classes = torch.arange(len(w)) if classes is None else classes
    column = torch.full((len(w),), -1)
    column[classes] = torch.arange(len(classes))
    y = column[labels[keep]]
    cosines = F.normalize(x)[keep] @ F.normalize(w)[classes].T
    losses = F.cross_entropy(logits(cosines, y), y, reduction="none")
    if weights is not None:
        losses = losses * weights[keep]
    loss = losses.sum() / max(1, len(losses))
    loss.backward()
    return loss.detach(), x.grad, w.grad
