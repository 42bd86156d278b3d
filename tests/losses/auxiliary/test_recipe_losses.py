"""What the recipes add to the margin loss, against published implementations and plain formulas."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from losses.auxiliary.contrastive import AdaptiveContrast
from losses.auxiliary.hardness import gaussian_posterior, hardness_weights
from losses.auxiliary.topology import Cloud, topological_loss
from losses.head.collective import rank
from tests.losses.support import close


def prim(distances):
    """Sorted edge lengths of a minimum spanning tree, by Prim's algorithm."""
    inside, lengths = [0], []
    while len(inside) < len(distances):
        outside = [j for j in range(len(distances)) if j not in inside]
        length, j = min((distances[i, j], j) for i in inside for j in outside)
        inside.append(j)
        lengths.append(length)
    return sorted(lengths)


def test_spanning_tree_with_duplicates():
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 5
    points[7] = points[3]
    edges = Cloud(points).tree()
    lengths = (points[edges[:, 0]] - points[edges[:, 1]]).norm(dim=1)
    expected = prim(squareform(pdist(points.double().numpy())))
    assert len(edges) == 19
    assert np.allclose(lengths.numpy(), expected, atol=1e-5)


def test_topology_reference(shared):
    data = np.load(shared / "reference/losses/topofr_topo.npz")
    embeddings = torch.tensor(data["in_emb"]).requires_grad_()
    loss = topological_loss(Cloud(torch.tensor(data["in_img"])), Cloud(embeddings))
    loss.backward()
    close(loss.detach(), torch.tensor(float(data["out_loss"])), 1e-5)
    close(embeddings.grad, torch.tensor(data["out_gemb"]), 1e-5)


def middle_of_almost_equal_sides(replicated):
    """The corner with two edges: which side of the triangle is longest, by very little, differs from rank to rank."""
    corners = torch.tensor([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    corners[1 + rank()] *= 1.001
    corners.requires_grad_()
    images = torch.zeros(3, 3, 4, 4)
    topological_loss(Cloud(images), Cloud(corners), replicated).backward()
    return corners.grad.norm(dim=1).argmax().item()


def test_all_ranks_have_one_tree(ranks):
    assert ranks(2, middle_of_almost_equal_sides, False) == [2, 1]
    assert ranks(2, middle_of_almost_equal_sides, True) == [2, 2]


def test_topology_is_finite_on_equal_embeddings():
    embeddings = torch.ones(6, 4, requires_grad=True)
    loss = topological_loss(Cloud(torch.rand(6, 3, 5, 5)), Cloud(embeddings))
    loss.backward()
    assert torch.isfinite(loss) and (embeddings.grad == 0).all()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_mixture_reference(shared, step):
    data = np.load(shared / f"reference/losses/topofr_gum_{step}.npz")
    gamma = gaussian_posterior(data["in_x"][:, 0].astype(np.float64))
    assert np.abs(gamma - data["out_gamma"]).max() < 1e-6


@pytest.mark.parametrize("values", [np.zeros(5), np.full(1, 7.0), np.array([1e30, -1e30, 0.0]), np.array([])])
def test_mixture_is_finite(values):
    gamma = gaussian_posterior(values)
    assert gamma.shape == values.shape and np.isfinite(gamma).all() and ((gamma >= 0) & (gamma <= 1)).all()


def test_rows_without_a_class_do_not_change_the_others():
    entropy, probability = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(40) % 10 >= 2  # two at a time, so that the alternating signs of the others stay
    weights = hardness_weights(torch.where(valid, entropy, 99.0), probability, valid)
    alone = hardness_weights(entropy[valid], probability[valid], torch.ones(32, dtype=torch.bool))
    assert torch.equal(weights[valid], alone)


def test_hardness_reference(shared):
    data = np.load(shared / "reference/losses/topofr_sde.npz")
    cosines, labels = torch.tensor(data["in_cos"]), torch.tensor(data["in_label"])
    weights = torch.tensor(data["out_w1"]) * (1 - torch.tensor(data["out_pgt_float"]))
    probability = torch.tensor(data["out_pgt_float"]).double()
    # The entropy of the reference's own logits: s (cos θ + m) at the target, s cos elsewhere, s = 64, m = .5.
    theta = torch.acos(cosines.gather(1, labels[:, None]))
    logits = (64 * cosines.double()).scatter(1, labels[:, None], 64 * torch.cos(theta + 0.5).double())
    p = logits.softmax(1)
    assert torch.allclose(p.gather(1, labels[:, None])[:, 0], probability, atol=1e-5)
    entropy = -(p * (p + 1e-5).log()).sum(1)
    close(hardness_weights(entropy, probability, torch.ones(16, dtype=torch.bool)), weights, 1e-4)


def test_contrast_reference(shared):
    contrast = AdaptiveContrast(momentum=0.01)
    for step in range(3):
        data = np.load(shared / f"reference/losses/contraface_{step}.npz")
        first, second = (torch.tensor(data[name]).requires_grad_() for name in ("in_x1", "in_x2"))
        loss = contrast(first, second, torch.tensor(data["in_label"]))
        loss.backward()
        close(loss.detach(), torch.tensor(float(data["out_loss"])), 1e-5)
        close(first.grad, torch.tensor(data["out_g1"]), 1e-4)
        close(second.grad, torch.tensor(data["out_g2"]), 1e-4)
        assert abs(contrast.margin.item() - float(data["out_m"])) < 1e-6


def test_contrast_keeps_its_memory():
    contrast = AdaptiveContrast()
    x = torch.eye(4)
    contrast(x, x, torch.arange(4))
    assert abs(contrast.margin.item() - 0.01) < 1e-7


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None)])
def test_what_is_not_finite_shows_in_the_loss_and_nowhere_else(rows, value, recwarn):
    """No error, which would end a run whose step is only left out; and no trace in the contrast's margin."""
    generator = torch.Generator().manual_seed(0)
    images, first, second = (torch.rand(12, size, generator=generator) for size in (75, 8, 8))
    broken = first.clone()
    broken[rows, 2] = value
    assert not topological_loss(Cloud(images), Cloud(broken.requires_grad_())).isfinite()
    spoilt = torch.where(torch.eye(12, 75) > 0, value, images)
    assert not topological_loss(Cloud(spoilt), Cloud(first)).isfinite()
    assert hardness_weights(broken[:, 2], first[:, 0], torch.ones(12, dtype=torch.bool)).isnan().all()
    contrast, expected = AdaptiveContrast(), AdaptiveContrast()
    assert contrast(broken, second, torch.arange(12)).isnan()
    assert contrast.margin == 0
    assert torch.equal(*(each(first, second, torch.arange(12)) for each in (contrast, expected)))
    assert not recwarn.list


def test_half_precision_ends_before_the_losses():
    """Under the autocast of a training step they are what they are without it."""
    generator = torch.Generator().manual_seed(0)
    images, first, second = (torch.rand(24, size, generator=generator) for size in (75, 8, 8))
    images[::2] += 3  # what two far groups are among themselves is small beside their squares

    def losses(half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            contrast = AdaptiveContrast()(first, second, torch.arange(24))
            clouds = Cloud(images), Cloud(first)
            return contrast, topological_loss(*clouds), *(cloud.tree() for cloud in clouds)

    for ours, expected in zip(losses(True), losses(False), strict=True):
        assert torch.equal(ours, expected)
