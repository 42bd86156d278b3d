"""UniFace: a sum that is no log-sum-exp, and a threshold that is learned."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.distributed.checkpoint as dcp

from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.dense import reduce_densely
from losses.head.sampling import draw
from losses.margins.margin import Margin
from tests.losses import naive
from tests.losses.families import batch
from tests.losses.support import RULES, THEIRS, close

WAYS = {
    "dense": dict(mode="dense"),
    "plain": {},
    "fused": dict(fused=True),
    "triton": dict(fused=True, kernels="triton"),
}


def make(centres, b=5.0, s=16.0, rate=1.0, rule="sgd", fused=False, **options):
    margin = create_margin("uniface", s=s, m=0.3, weight=0.5, b=b)
    head = PartialFC(margin, centres.shape[1], len(centres), tile=7, sample_rate=rate, seed=2, **options)
    head.load_state_dict({"weight": centres}, strict=False)
    return head, CentreOptimizer(head, **RULES[rule], fused=fused)


def expected(b, labels, embeddings, centres, weights, classes):
    """In float64: the loss and its derivatives by embeddings, centres and b."""
    b = b.double().detach().requires_grad_()
    column = torch.full((len(centres),), -1)
    column[classes] = torch.arange(len(classes))
    formula = partial(naive.uniface, s=16.0, m=0.3, weight=0.5, b=b)
    labels = torch.where(labels >= 0, column[labels], -1)
    return *naive.family(embeddings, centres[classes], labels, weights, formula, weights), b.grad


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("way", WAYS)
def test_the_threshold_has_the_formula_s_gradient(way, rate):
    """Sampled, the sum is over the classes drawn."""
    embeddings, labels, centres, weights = batch()
    labels[3] = -1
    head, optimizer = make(centres, rate=rate, **WAYS[way])
    x = embeddings.clone().requires_grad_()
    loss = head(x, labels, weights).loss
    loss.backward()
    classes = draw(labels, 37, 0, 37, rate, 2, 0).index
    theirs = expected(torch.tensor(5.0), labels, embeddings, centres, weights, classes)
    for ours, value in zip((loss.detach(), x.grad, head.margin.b.grad), (theirs[0], theirs[1], theirs[3])):
        close(ours, value)
    optimizer.step()
    gradient = theirs[2] + RULES["sgd"]["weight_decay"] * centres[classes].double()
    close(head.weight.detach()[classes] - centres[classes], -0.1 * gradient, 1e-4)


def test_the_threshold_s_gradient_is_the_loss_s_slope():
    """By torch's own check, of the dense form in float64."""
    embeddings, labels, centres, _ = batch(rows=4)
    head, _ = make(centres, mode="dense")
    head.double()

    def loss(b):
        rows, cos = head._rows(labels), torch.nn.functional.normalize(embeddings.double())
        head.margin.b = b
        view, cos_y = head._view(cos, rows.labels, embeddings.double().norm(dim=1), None)
        others, mass = reduce_densely(cos, head.weight, 0, view, head.margin, None, False)
        return head.margin.loss(head.margin.target(cos_y, view), others - mass * (b - b.detach()), view).sum()

    b = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    del head.margin.b
    assert torch.autograd.gradcheck(loss, b)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_the_threshold_moves_by_torch_s_rule(way, rule, accumulate):
    """Without weight decay; and not where a step is not taken. A fused pass uses the threshold of its batch."""
    centres = batch()[2]
    head, optimizer = make(centres, rule=rule, **WAYS[way])
    twin, theirs = make(centres, rule=rule, **{k: v for k, v in WAYS[way].items() if k == "mode"})
    options = {k: v for k, v in RULES[rule].items() if k not in ("algorithm", "weight_decay")}
    separate = THEIRS[rule]([twin.margin.b], weight_decay=0.0, **options)
    optimizer.grad_scale = theirs.grad_scale = torch.tensor(64.0)
    for step in range(3):
        for part in range(accumulate):
            embeddings, labels, _, _ = batch(step * accumulate + part)
            for each in (head, twin):
                (each(embeddings, labels).loss * 64).backward()
        gradient, twin.margin.b.grad = twin.margin.b.grad / 64, None
        theirs.step()  # of the centres alone
        twin.margin.b.grad = gradient
        separate.step()
        separate.zero_grad()
        optimizer.step(torch.tensor(True))
        close(head.margin.b.detach(), twin.margin.b.detach(), 1e-5)
        close(head.weight.detach(), twin.weight.detach(), 1e-4)
        kept = copy.deepcopy(head.state_dict()), copy.deepcopy(optimizer.state_dict())
        head(embeddings, labels).loss.backward()
        optimizer.step(torch.tensor(False))
        head.step -= 1
        for old, new in zip(kept, (head.state_dict(), optimizer.state_dict())):
            assert all(torch.equal(value, new[key]) for key, value in old.items())


def on_rank(rule, rate, folder, resume):
    """Two steps, or two more from a checkpoint."""
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    head, optimizer = make(batch()[2], rule=rule, rate=rate, fused=True)
    state = {"head": head.state_dict(), "optimizer": optimizer.state_dict()}
    if resume:
        dcp.load(state, checkpoint_id=folder)
        head.load_state_dict(state["head"])
    for step in (2, 3) if resume else (0, 1):
        embeddings, labels, _, _ = (part.tensor_split(world)[rank] for part in batch(step))
        head(embeddings, labels).loss.backward()
        optimizer.step()
    if not resume:
        dcp.save({"head": head.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    return head.margin.b.detach().clone(), head.weight.detach().clone()


@pytest.mark.parametrize("rule, rate", [("sgd", 1.0), ("adamw", 0.5)])
def test_any_number_of_ranks_and_resumed(ranks, tmp_path, rule, rate):
    """The threshold is the same on all of them, to the last bit."""
    for resume, worlds in ((False, (1, 2, 4)), (True, (2, 4, 1))):
        results = [ranks(world, on_rank, rule, rate, str(tmp_path / str(i)), resume) for i, world in enumerate(worlds)]
        for parts in results:
            assert len({b.item() for b, _ in parts}) == 1
            close(parts[0][0], results[0][0][0], 1e-5)
            close(torch.cat([weight for _, weight in parts]), torch.cat([weight for _, weight in results[0]]), 1e-4)
        assert results[0][0][0] != 5


def test_where_the_threshold_starts():
    assert PartialFC(create_margin("uniface"), 4, 1000).margin.b.item() == pytest.approx(math.log(10_000))
    assert PartialFC(create_margin("uniface"), 4, 1000, sample_rate=0.1).margin.b.item() == pytest.approx(
        math.log(1000)
    )
    assert PartialFC(create_margin("uniface", b=3), 4, 1000).margin.b.item() == 3
    with pytest.raises(ValueError, match="UniFace has no softmax over the classes"):
        PartialFC(create_margin("uniface"), 4, 1000, entropy=True)


class BinaryCosines(Margin):
    """A loss of the kind of SphereFace2's: softplus of each cosine above its place, squared and shifted."""

    reduction = "softplus"

    def others(self, cos, batch):
        return self.s * ((cos + 1) ** 2 / 2 - 1)

    def bias(self, batch):
        return batch.cos_y.new_full((), 2.5)

    def loss(self, target, reduced, batch):
        return torch.nn.functional.softplus(2.5 - target) + reduced


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_a_margin_of_ones_own_may_sum_so(mode, rows):
    embeddings, labels, centres, uniform = batch(rows=rows)

    def formula(cos, labels, norm, uniform):
        logits = 16 * ((cos + 1) ** 2 / 2 - 1) - 2.5
        own = torch.nn.functional.one_hot(labels, cos.shape[1]).bool()
        terms = torch.where(own, 2.5 - 16 * cos, logits)
        return torch.logaddexp(torch.zeros_like(terms), terms).sum(1)

    head = PartialFC(BinaryCosines(16.0), 16, 37, mode=mode, tile=5)
    head.load_state_dict({"weight": centres})
    x = embeddings.clone().requires_grad_()
    loss = head(x, labels).loss
    loss.backward()
    for ours, theirs in zip(
        (loss.detach(), x.grad, head.weight.grad), naive.family(embeddings, centres, labels, uniform, formula)
    ):
        close(ours, theirs)
