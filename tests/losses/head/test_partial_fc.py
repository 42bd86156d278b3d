"""The head against float64 formulas, itself on other numbers of ranks, and published implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import PartialFC, create_margin
from losses.head.sampling import draw
from tests.losses import naive
from tests.losses.support import close, problem

MARGIN = {"arcface": (dict(s=64, m=0.5), naive.arc(64, 0.5)), "cosface": (dict(s=64, m=0.4), naive.cos(64, 0.4))}


def run(embeddings, labels, centres, margin="arcface", options=None, weights=None, **head_options):
    head = PartialFC(create_margin(margin, **(options or {})), centres.shape[1], len(centres), **head_options)
    head.load_state_dict({"weight": centres})
    x = embeddings.clone().requires_grad_()
    out = head(x, labels, weights)
    out.loss.backward()
    gradient = head.weight.grad
    return out, x.grad, gradient.to_dense() if gradient.is_sparse else gradient


@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("margin", MARGIN)
def test_matches_float64(margin, mode):
    embeddings, labels, centres = problem()
    labels[3] = -1
    weights = torch.rand(12) + 0.5
    options, logits = MARGIN[margin]
    out, gx, gw = run(embeddings, labels, centres, margin, options, weights, mode=mode, tile=5)
    loss, ex, ew = naive.head(embeddings, centres, labels, logits, weights)
    close(out.loss, loss)
    close(gx, ex)
    close(gw, ew)
    assert (gx[3] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    d=st.integers(4, 8),  # in fewer, cosines come so near to ±1 that float32 has no digits left for the sine
    classes=st.integers(1, 20),
    tile=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, d, classes, tile, seed):
    embeddings, labels, centres = problem(rows, d, classes, seed)
    out, gx, gw = run(embeddings, labels, centres, tile=tile)
    loss, ex, ew = naive.head(embeddings, centres, labels, naive.arc(64, 0.5))
    close(out.loss, loss, 1e-4)
    close(gx, ex, 1e-3)
    close(gw, ew, 1e-3)


def test_gradient_is_the_slope_of_the_loss():
    embeddings, labels, centres = problem(4, 6, 9)
    _, gx, gw = run(embeddings, labels, centres)
    direction = torch.randn_like(embeddings)
    step = 1e-3

    def loss(shift):
        return run(embeddings + shift * direction, labels, centres)[0].loss.double()

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert abs(slope - (gx * direction).sum()) < 2e-2 * abs(slope)


@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_the_probability_is_the_softmax_s_whatever_the_loss_adds(mode):
    """MagFace's loss has a penalty beside the cross-entropy, SphereFace-R's a factor before it."""
    embeddings, labels, centres = problem(spread=0.1)
    norms = torch.linalg.vector_norm(embeddings, dim=1).double()
    cosines = torch.nn.functional.normalize(embeddings.double()) @ torch.nn.functional.normalize(centres.double()).T
    margins, _ = naive.magnitude(norms, 0.45, 0.8)
    for margin, targets in (
        ("magface", naive.arc_targets(cosines, labels, margins)),
        ("sphereface_r1", torch.cos((1.4 * torch.acos(naive.own(cosines, labels))).clamp(max=math.pi))),
    ):
        head = PartialFC(create_margin(margin, s=16.0), *centres.shape[::-1], mode=mode, tile=10, entropy=True)
        head.load_state_dict({"weight": centres})
        logits = 16 * cosines.scatter(1, labels[:, None], targets[:, None])
        expected = naive.own(logits.softmax(1), labels)
        close(head(embeddings, labels).probability, expected, 1e-5)


def test_entropy_is_that_of_the_softmax():
    embeddings, labels, centres = problem(spread=0.1)
    cosines = torch.nn.functional.normalize(embeddings.double()) @ torch.nn.functional.normalize(centres.double()).T
    p = naive.arc(16, 0.5)(cosines, labels).softmax(1)
    expected = -(p * p.log()).sum(1)
    for mode in ("streamed", "dense"):
        out, *_ = run(embeddings, labels, centres, options=dict(s=16, m=0.5), mode=mode, tile=10, entropy=True)
        close(out.entropy, expected, 1e-5)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
@pytest.mark.parametrize("margin", MARGIN)
def test_embedding_on_or_opposite_its_centre(margin, cosine):
    embeddings, labels, centres = problem(6, 8, 11)
    embeddings = cosine * 3 * centres[labels]
    out, gx, gw = run(embeddings, labels, centres, margin)
    for value in (out.loss, gx, gw):
        assert torch.isfinite(value).all()


def test_one_class_and_no_label_at_all():
    embeddings, labels, centres = problem(5, 8, 1)
    out, gx, _ = run(embeddings, labels, centres)
    assert out.loss == 0 and (gx == 0).all()
    out, gx, gw = run(*problem(5, 8, 7)[:1], torch.full((5,), -1), problem(5, 8, 7)[2])
    assert out.loss == 0 and (gx == 0).all() and (gw == 0).all()


def test_sampling_takes_part_of_the_classes_only():
    embeddings, labels, centres = problem(6, 16, 200)
    labels[0] = -1
    out, gx, gw = run(embeddings, labels, centres, sample_rate=0.1, seed=5, tile=7)
    sampled = draw(labels, 200, 0, 200, 0.1, seed=5, step=0)
    classes = sampled.index
    assert 8 <= len(classes) < 40 and set(labels[1:].tolist()) <= set(classes.tolist())
    loss, ex, ew = naive.head(embeddings, centres, labels, naive.arc(64, 0.5), classes=classes)
    close(out.loss, loss)
    close(gx, ex)
    close(gw, ew)
    dense, *_ = run(embeddings, labels, centres, sample_rate=0.1, seed=5, mode="dense")
    close(dense.loss, loss)


@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_sampling_at_a_large_scale(mode):
    embeddings, labels, centres = problem(6, 16, 200)
    out, gx, gw = run(
        embeddings, labels, centres, options=dict(s=300.0), sample_rate=0.1, seed=5, tile=7, mode=mode, entropy=True
    )
    classes = draw(labels, 200, 0, 200, 0.1, seed=5, step=0).index
    loss, ex, ew = naive.head(embeddings, centres, labels, naive.arc(300, 0.5), classes=classes)
    close(out.loss, loss)
    close(gx, ex, 1e-4)
    close(gw, ew, 1e-4)


# -- ranks -----------------------------------------------------------------------------------------------------------


def on_rank(embeddings, labels, centres, cuts, s, head_options):
    """One rank's part of a batch cut at ``cuts``: loss, gradients over world size, this rank's centres' range."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    part = slice(cuts[rank], cuts[rank + 1])
    head = PartialFC(create_margin("arcface", s=s), centres.shape[1], len(centres), **head_options)
    head.load_state_dict({"weight": centres})
    x = embeddings[part].clone().requires_grad_()
    out = head(x, labels[part])
    out.loss.backward()
    gradient = head.weight.grad
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return out.loss.item(), x.grad / world, gradient, out.local


@pytest.mark.parametrize("classes", [37, 3])
@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("s", [64.0, 300.0])
def test_any_number_of_ranks(ranks, classes, mode, rate, s):
    embeddings, labels, centres = problem(12, 16, classes)
    labels[7] = -1
    options = dict(mode=mode, sample_rate=rate, seed=9, tile=5)
    out, gx, gw = run(embeddings, labels, centres, options=dict(s=s), **options)
    for cuts in ([0, 6, 12], [0, 3, 6, 9, 12], [0, 1, 2, 9, 12]):
        uneven = dict(options, uneven_batches=cuts[1] != 12 // (len(cuts) - 1))
        results = ranks(len(cuts) - 1, on_rank, embeddings, labels, centres, cuts, s, uneven)
        for loss, *_ in results:
            assert abs(loss - out.loss.item()) < 1e-5 * abs(out.loss.item())
        close(torch.cat([r[1] for r in results]), gx, 3e-7 * s)
        close(torch.cat([r[2] for r in results]), gw, 3e-7 * s)
        assert [r[3] for r in results] == [slice(a, b) for a, b in zip(cuts, cuts[1:])]


def initial_centres():
    return PartialFC(create_margin("arcface"), 4, 9001, seed=3).weight.detach()


def test_initial_centres_do_not_depend_on_the_ranks(ranks):
    assert torch.equal(torch.cat(ranks(3, initial_centres)), initial_centres())


def extended(start, count):
    head = PartialFC(create_margin("arcface"), 4, start, seed=3)
    with torch.no_grad():
        head.weight.mul_(-1)
    head.extend_classes(count)
    out = head(torch.ones(2, 4), torch.tensor([0, start + count - 1]))
    out.loss.backward()
    return head.weight.detach(), out.loss.item(), head.num_classes


@pytest.mark.parametrize("start, count", [(9, 1), (9, 8), (2, 1), (4097, 4096)])
def test_extended_classes_keep_the_old_centres(ranks, start, count):
    whole = PartialFC(create_margin("arcface"), 4, start + count, seed=3).weight.detach().clone()
    whole[:start] *= -1
    weight, _, classes = extended(start, count)
    assert torch.equal(weight, whole) and classes == start + count
    for world in (2, 3, 4):
        results = ranks(world, extended, start, count)
        assert torch.equal(torch.cat([weight for weight, *_ in results]), whole)
        assert len({loss for _, loss, _ in results}) == 1


def test_extending_by_nothing_is_an_error():
    with pytest.raises(ValueError, match="positive"):
        extended(5, 0)


# -- published implementations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arc", "cos"])
@pytest.mark.parametrize("filtered", [False, True])
def test_margin_reference(shared, name, filtered):
    data = np.load(shared / f"reference/losses/margin_{name}{'_filter' if filtered else ''}.npz")
    cosines, labels = torch.tensor(data["in_cos"]), torch.tensor(data["in_label"])[:, 0]
    if name == "arc":
        margin = create_margin("arcface", gradient="straight_through", interclass_filter=0.4 if filtered else None)
    else:
        margin = create_margin("cosface", interclass_filter=0.2 if filtered else None)
    keep = labels >= 0
    c = cosines.clone().requires_grad_()
    others = margin.others(c, None)
    target = margin.target(c[keep, labels[keep]], None)
    logits = others.index_put((keep.nonzero()[:, 0], labels[keep]), target)
    # The reference has no guard past π: rows beyond it are compared for the cosine margin only.
    inside = (
        torch.ones_like(keep)
        if name == "cos"
        else ~keep | (cosines.gather(1, labels.clamp(min=0)[:, None])[:, 0] > -0.87)
    )
    close(logits[inside], torch.tensor(data["out_logits"])[inside])
    (logits * torch.tensor(data["in_v"])).sum().backward()
    close(c.grad[inside], torch.tensor(data["out_gcos"])[inside])


@pytest.mark.parametrize("name", ["full_arc", "full_cos", "r05_cos", "r01_cos"])
def test_partial_fc_reference(shared, name):
    data = {k: torch.tensor(v) for k, v in np.load(shared / f"reference/losses/pfc_{name}.npz").items()}
    labels, centres = data["in_label"], data["in_weight"]
    margin = "arcface" if name.endswith("arc") else "cosface"
    options = dict(gradient="straight_through") if margin == "arcface" else {}
    classes = data.get("out_index", torch.arange(50))
    relabel = torch.full((51,), -1)
    relabel[classes] = torch.arange(len(classes))
    out, gx, gw = run(data["in_emb"], relabel[labels], centres[classes], margin, options)
    # There, the row without a label is part of the mean and is pushed from all centres; everything else is ours.
    rows = labels >= 0
    count = rows.sum() / len(labels)
    close(gx[rows] * count, data["out_gemb"][rows])
    losses = out.row_losses[rows].sum() / len(labels)
    close(losses + 30 * np.log(10) / len(labels) * (~rows).sum(), data["out_loss"], 1e-4)
