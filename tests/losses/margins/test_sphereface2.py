"""SphereFace2 and SphereFace-R: their authors' numbers, the bias, sampling, the kernels."""

import math
from functools import partial

import pytest
import torch

from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.sampling import draw
from tests.losses import naive
from tests.losses.families import batch
from tests.losses.support import close

# The loss, d loss / d x[:, 0] and d loss / d bias of ydwen/opensphere's heads (commits 26494db, SphereFace2C, and
# 22b3d90, SphereFaceR_H), run in float64 on the inputs of `authors_inputs`.
AUTHORS = {
    "sphereface2": (
        dict(s=40, m=0.4, balance=0.7, t=3, weight=50),
        36.16711952864129,
        [0.18780746, 0.53073437, 0.454303616, -0.557720254, 0.261728403, 0.228216306],
        0.4887605807791011,
    ),
    "sphereface2 t 2": (
        dict(s=64, m=0.5, balance=0.8, t=2, weight=10),
        8.490753169915124,
        [-0.053962159, 0.099893324, 0.054257949, -0.15983111, 0.004390259, 0.043176753],
        -0.013075029358114887,
    ),
    "sphereface_r1": (
        dict(s=30, m=1.5),
        43.8786305697624,
        [0.117325122, 0.730198479, 0.123809706, -0.611972956, 0.480975688, 0.125676481],
        None,
    ),
    "sphereface_r2": (
        dict(s=60, m=1.4),
        24.730262029588438,
        [0.117543351, 0.740379812, 0.111102851, -0.609461951, 0.488804983, 0.124413607],
        None,
    ),
}


def authors_inputs():
    x = torch.sin(torch.arange(48.0, dtype=torch.float64) ** 2).reshape(6, 8) * 3
    centres = torch.cos(torch.arange(80.0, dtype=torch.float64) ** 2).reshape(10, 8)
    return x.float(), torch.tensor([0, 3, 3, 9, 1, 6]), centres.float()


@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_numbers(name, mode):
    options, loss, gradient, of_bias = AUTHORS[name]
    x, labels, centres = authors_inputs()
    head = PartialFC(create_margin(name.split()[0], **options), 8, 10, mode=mode, tile=4)
    head.load_state_dict({"weight": centres}, strict=False)
    x.requires_grad_()
    ours = head(x, labels).loss
    ours.backward()
    close(ours.detach(), torch.tensor(loss), 1e-5)
    close(x.grad[:, 0], torch.tensor(gradient), 2e-5)
    if of_bias is not None:
        close(head.margin.b.grad, torch.tensor(of_bias), 2e-5)


WAYS = {
    "dense": dict(mode="dense"),
    "plain": {},
    "fused": dict(fused=True),
    "triton": dict(fused=True, kernels="triton"),
}


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("way", WAYS)
def test_of_the_classes_drawn(way, rate, t):
    """Embeddings, centres and bias, by the formula over them."""
    embeddings, labels, centres, weights = batch()
    labels[3] = -1
    options = dict(WAYS[way])
    fused = options.pop("fused", False)
    margin = create_margin("sphereface2", s=16, m=0.2, t=t)
    head = PartialFC(margin, 16, 37, tile=7, sample_rate=rate, seed=2, **options)
    head.load_state_dict({"weight": centres}, strict=False)
    optimizer = CentreOptimizer(head, lr=0.01, momentum=0, weight_decay=0, fused=fused)
    x = embeddings.clone().requires_grad_()
    loss = head(x, labels, weights).loss
    loss.backward()
    classes = draw(labels, 37, 0, 37, rate, 2, 0).index
    column = torch.full((37,), -1)
    column[classes] = torch.arange(len(classes))
    b = head.margin.b.detach().double().requires_grad_()
    formula = partial(naive.sphereface2, s=16, m=0.2, t=t, b=b)
    theirs = naive.family(
        embeddings, centres[classes], torch.where(labels >= 0, column[labels], -1), weights, formula, weights
    )
    for ours, value in zip((loss.detach(), x.grad, head.margin.b.grad), (*theirs[:2], b.grad)):
        close(ours, value)
    optimizer.step()
    close(head.weight.detach()[classes] - centres[classes], -0.01 * theirs[2], 1e-4)


@pytest.mark.parametrize("classes, balance", [(2, 0.9), (10, 0.7), (100_000, 0.8)])
def test_where_the_bias_starts(classes, balance):
    """With all cosines 0 the own class pulls as hard as all others together."""
    margin = create_margin("sphereface2", s=30, m=0.3, balance=balance)
    margin.begin(classes)
    b, similarity = margin.b.item(), 2 * 0.5**3 - 1
    own = balance / (1 + math.exp(30 * (similarity - 0.3) + b))
    others = (1 - balance) * (classes - 1) / (1 + math.exp(-30 * (similarity + 0.3) - b))
    assert own == pytest.approx(others, rel=1e-4)
