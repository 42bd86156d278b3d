"""Margin losses as their definitions read, in float64, from full logits: what the head is compared with."""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.special import log_expit
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


# -- families: (B, C) cosines, (B,) labels, norms, uniform numbers → (B,) losses; state as it is for a first batch -----


def psi(theta: Tensor, m: Tensor | float) -> Tensor:
    """cos(θ + m), continued past π and before 0."""
    m = torch.as_tensor(m)
    if theta + m > math.pi:
        return torch.cos(theta) - m * torch.sin(m)
    return torch.cos(theta + m) if theta + m > 0 else torch.ones_like(theta)


def softmax(targets: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy row by row; both arguments are logits."""
    losses = []
    for target, row, y in zip(targets, others, labels):
        rest = torch.cat([row[:y], row[y + 1 :]])
        losses.append(torch.logsumexp(torch.cat([target[None], rest]), 0) - target)
    return torch.stack(losses)


def own(cos: Tensor, labels: Tensor) -> Tensor:
    return cos[torch.arange(len(cos)), labels]


def arc_targets(cos: Tensor, labels: Tensor, margins) -> Tensor:
    return torch.stack([psi(torch.acos(c), m) for c, m in zip(own(cos, labels), margins)])


def detached(cos: Tensor, value: Tensor) -> Tensor:
    """The value with the derivative of the cosine."""
    return cos + (value - cos).detach()


def sphereface(cos, labels, norm, uniform, s=64, m=1.7, straight=False):
    theta = m * torch.acos(own(cos, labels))
    k = torch.floor(theta / math.pi)
    targets = (-1) ** k * torch.cos(theta) - 2 * k
    targets = detached(own(cos, labels), targets) if straight else targets
    return softmax(s * targets, s * cos, labels)


def curricularface(cos, labels, norm, uniform, s=64, m=0.5, t=0.0):
    t = 0.99 * t + 0.01 * own(cos, labels).detach().mean()
    targets = arc_targets(cos, labels, [m] * len(cos))
    return softmax(s * targets, s * torch.where(cos > targets.detach()[:, None], cos * (t + cos), cos), labels)


def mv_softmax(cos, labels, norm, uniform, kind, s=32, m=0.35, t=0.2):
    targets = own(cos, labels) - m if kind == "am" else arc_targets(cos, labels, [m] * len(cos))
    return softmax(s * targets, s * torch.where(cos > targets.detach()[:, None], (t + 1) * cos + t, cos), labels)


def uniface(cos, labels, norm, uniform, s=64, m=0.4, weight=1.0, b=None):
    b = math.log(10 * cos.shape[1]) if b is None else b
    losses = []
    for row, y in zip(cos, labels):
        others = torch.cat([row[:y], row[y + 1 :]])
        own_class = torch.logaddexp(cos.new_zeros(()), b - s * (row[y] - m))
        losses.append(own_class + weight * torch.logaddexp(cos.new_zeros(()), s * others - b).sum())
    return torch.stack(losses)


def sphereface2(cos, labels, norm, uniform, s=40, m=0.4, balance=0.7, t=3, weight=50, b=None):
    if b is None:  # where own class and others pull alike at cosines of 0; the published code's root loses its digits
        shares, zero = (balance, (1 - balance) * (cos.shape[1] - 1)), s * (2 * 0.5**t - 1)
        pulls = (lambda b: log_expit(s * m - zero - b), lambda b: log_expit(s * m + zero + b))
        b = brentq(lambda b: math.log(shares[0] / shares[1]) + pulls[0](b) - pulls[1](b), -1e3, 1e3, xtol=1e-13)
    losses = []
    for row, y in zip(2 * ((cos + 1) / 2) ** t - 1, labels):
        others = torch.cat([row[:y], row[y + 1 :]])
        own_class = torch.logaddexp(cos.new_zeros(()), -s * (row[y] - m) - b)
        rest = torch.logaddexp(cos.new_zeros(()), s * (others + m) + b).sum()
        losses.append(weight / s * (balance * own_class + (1 - balance) * rest))
    return torch.stack(losses)


def sphereface_r(cos, labels, norm, uniform, version, straight=True, s=60, m=1.4, weight=50):
    theta = torch.acos(cos)
    moved = torch.cos((m * theta).clamp(max=math.pi) if version == 1 else theta / m)
    moved = detached(cos, moved) if straight else moved
    targets, others = (own(moved, labels), cos) if version == 1 else (own(cos, labels), moved)
    return weight / s * softmax(s * targets, s * others, labels)


def magnitude(norm, low, high):
    a = norm.clamp(10, 110)
    return low + (a - 10) / 100 * (high - low), 35 * (1 / a + a / 110**2)


def magface(cos, labels, norm, uniform, s=64, easy=False):
    margins, penalty = magnitude(norm, 0.45, 0.8)
    targets = arc_targets(cos, labels, margins)
    if easy:
        targets = torch.stack([moved if c > 0 else c for c, moved in zip(own(cos, labels), targets)])
    return softmax(s * targets, s * cos, labels) + penalty


def adaface(cos, labels, norm, uniform, s=64, m=0.4, h=0.333, mean=20.0, std=100.0, straight=False):
    norm = norm.detach().clamp(0.001, 100)
    mean, std = 0.99 * mean + 0.01 * norm.mean(), 0.99 * std + 0.01 * norm.std()
    z = ((norm - mean) / (std + 1e-3) * h).clamp(-1, 1)
    targets = arc_targets(cos, labels, (-m * z).tolist()) - (m + m * z)
    targets = detached(own(cos, labels), targets) if straight else targets
    return softmax(s * targets, s * cos, labels)


def elasticface(cos, labels, norm, uniform, kind, m, sigma, plus=False, s=64):
    draws = [NormalDist(m, sigma).inv_cdf(u) for u in uniform.tolist()]
    if plus:
        hardest_first = sorted(range(len(cos)), key=lambda i: own(cos, labels)[i].item())
        for row, margin in zip(hardest_first, sorted(draws, reverse=True)):
            draws[row] = margin
    if kind == "arc":
        return softmax(s * arc_targets(cos, labels, draws), s * cos, labels)
    return softmax(s * (own(cos, labels) - torch.tensor(draws, dtype=cos.dtype)), s * cos, labels)


def arcface(cos, labels, norm, uniform, s=64, m=0.5):
    return softmax(s * arc_targets(cos, labels, [m] * len(cos)), s * cos, labels)


def combined(cos, labels, norm, uniform, s=64, m2=0.3, m3=0.2):
    return softmax(s * (arc_targets(cos, labels, [m2] * len(cos)) - m3), s * cos, labels)


def gb_cosface(cos, labels, norm, uniform, s=32, m=0.16, alpha=0.15):
    positive = own(cos, labels)
    negative = torch.stack([torch.logsumexp(s * torch.cat([r[:y], r[y + 1 :]]), 0) / s for r, y in zip(cos, labels)])
    middle = ((positive + negative) / 2).detach()
    v = (1 - alpha) * middle + alpha * middle.mean().clamp(0.5, 0.7)
    return F.softplus(2 * s * (v - positive + m)) / 2 + F.softplus(2 * s * (negative - v + m)) / 2


def gb_magface(cos, labels, norm, uniform, s=32):
    margins, penalty = magnitude(norm, 0.144, 0.256)
    return gb_cosface(cos, labels, norm, uniform, s=s, m=margins) + penalty


def log_bessel(order: float, kappa: Tensor) -> Tensor:
    """log I_ν(κ) - ν log κ by Poisson's integral (DLMF 10.32.2) and the midpoint rule."""
    theta = (torch.arange(20000, dtype=torch.float64) + 0.5) * math.pi / 20000
    exponents = kappa.double()[:, None] * torch.cos(theta) + 2 * order * torch.log(torch.sin(theta))
    integral = torch.logsumexp(exponents, 1) + math.log(math.pi / 20000)
    return integral - order * math.log(2) - 0.5 * math.log(math.pi) - math.lgamma(order + 0.5)


def scf(cos, labels, norm, uniform, d=16):
    return log_bessel(d / 2 - 1, norm) - norm * own(cos, labels)


def family(embeddings, centres, labels, uniform, losses, weights=None) -> tuple[Tensor, Tensor, Tensor]:
    """``head`` for a family: mean loss of the rows with a class, and its gradients."""
    x, w = (value.detach().double().clone().requires_grad_() for value in (embeddings, centres))
    keep = labels >= 0
    cosines = F.normalize(x)[keep] @ F.normalize(w).T
    rows = losses(cosines, labels[keep], x[keep].norm(dim=1), uniform[keep])
    loss = (rows if weights is None else rows * weights[keep]).mean()
    loss.backward()
    return loss.detach(), x.grad, torch.zeros_like(w) if w.grad is None else w.grad
