"""Every margin family with its float64 formula, and steps of a head with it."""

from functools import partial

import torch
import torch.nn.functional as F

from losses import PartialFC, create_margin
from tests.losses import naive
from tests.losses.support import problem

FAMILIES = {
    "sphereface": ({}, naive.sphereface),
    "sphereface detached": ({"gradient": "straight_through"}, partial(naive.sphereface, straight=True)),
    "curricularface": ({}, naive.curricularface),
    "mv_softmax am": ({"kind": "am"}, partial(naive.mv_softmax, kind="am")),
    "mv_softmax arc": ({"kind": "arc"}, partial(naive.mv_softmax, kind="arc")),
    "magface": ({}, naive.magface),
    "magface easy": ({"easy_margin": True}, partial(naive.magface, easy=True)),
    "adaface": ({}, naive.adaface),
    "adaface detached": ({"gradient": "straight_through"}, partial(naive.adaface, straight=True)),
    "elasticface arc": ({}, partial(naive.elasticface, kind="arc", m=0.5, sigma=0.05)),
    "elasticface cos": ({"kind": "cos"}, partial(naive.elasticface, kind="cos", m=0.35, sigma=0.05)),
    "elasticface arc+": ({"plus": True}, partial(naive.elasticface, kind="arc", m=0.5, sigma=0.0175, plus=True)),
    "elasticface cos+": (
        {"kind": "cos", "plus": True},
        partial(naive.elasticface, kind="cos", m=0.35, sigma=0.02, plus=True),
    ),
    "gb_cosface": ({}, naive.gb_cosface),
    "gb_magface": ({}, naive.gb_magface),
    "broadface": ({"queue_size": 20}, naive.arcface),
    "scf": ({}, naive.scf),
    "uniface": ({}, naive.uniface),
    "sphereface2": ({}, naive.sphereface2),
    "sphereface2 t 2": (
        {"t": 2, "balance": 0.8, "weight": 10},
        partial(naive.sphereface2, t=2, balance=0.8, weight=10),
    ),
    "sphereface2 t 1": ({"t": 1}, partial(naive.sphereface2, t=1)),
    "sphereface_r1": ({}, partial(naive.sphereface_r, version=1)),
    "sphereface_r2": ({}, partial(naive.sphereface_r, version=2)),
    "sphereface_r1 exact": ({"gradient": "exact"}, partial(naive.sphereface_r, version=1, straight=False)),
    "sphereface_r2 exact": ({"gradient": "exact"}, partial(naive.sphereface_r, version=2, straight=False)),
}


def batch(seed=0, rows=12, d=16, classes=37):
    """Embeddings of norms from 5 to 120, most near their centres, one beside and one opposite; and uniform numbers."""
    embeddings, labels, centres = problem(rows, d, classes, seed)
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(embeddings) * (5 + 115 * torch.rand(rows, 1, generator=generator))
    if rows > 2:
        embeddings[1] = -embeddings[1]
        embeddings[2] = embeddings[2].roll(1)
    return embeddings, labels, centres, torch.rand(rows, generator=generator)


def make(name, centres, **head_options):
    options, _ = FAMILIES[name]
    head = PartialFC(create_margin(name.split()[0], **options), centres.shape[1], len(centres), **head_options)
    with torch.no_grad():
        head.weight.copy_(centres[head.start : head.stop])
    return head


def step(head, embeddings, labels, uniform, weights=None):
    """Loss and gradients of one batch."""
    x = embeddings.clone().requires_grad_()
    head.weight.grad = None
    out = head(x, labels, weights, uniform)
    out.loss.backward()
    gradient = head.weight.grad
    return out.loss.detach(), x.grad, torch.zeros_like(head.weight) if gradient is None else gradient.to_dense()


def state(head):
    return {key: value for key, value in head.state_dict().items() if key != "weight"}
