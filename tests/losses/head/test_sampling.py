"""Which classes take part in a step: how many, which, on which rank, and when it is known."""

from functools import partial

import numpy as np
import pytest
import torch

import losses.head.partial_fc
from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.sampling import draw, union
from tests.losses.support import close, problem


def test_more_positives_than_the_quota():
    labels = torch.arange(30)
    sampled = draw(labels, 40, 0, 40, 0.1, 0, 0)
    assert sampled.index.tolist() == list(range(30))


def test_draws_are_uniform_and_change_with_the_step():
    counts, sizes = torch.zeros(1000), []
    for step in range(200):
        sampled = draw(torch.tensor([-1]), 1000, 0, 1000, 0.1, 3, step)
        counts[sampled.index] += 1
        sizes.append(len(sampled.index))
    # 200 draws at rate .1: mean 20, variance 18; chi-square over 1000 classes stays within 5 sigma of its mean.
    statistic = ((counts - 20) ** 2 / 18).sum()
    assert abs(statistic - 1000) < 5 * (2 * 1000) ** 0.5
    assert abs(np.mean(sizes) - 100) < 5 * (90 / 200) ** 0.5


def test_positives_count_towards_the_quota():
    """60 different ones of 100 leave 40 for the other 940; equal labels count once, missing ones not at all."""
    labels = torch.arange(60).repeat(3)
    labels[120:] = -1
    sizes = [len(draw(labels, 1000, 0, 1000, 0.1, 3, step).index) for step in range(200)]
    assert abs(np.mean(sizes) - 100) < 5 * (40 * 900 / 940 / 200) ** 0.5


@pytest.mark.parametrize("aligned", [1, 8, 128])
def test_shards_draw_what_the_whole_draws(aligned):
    labels = torch.tensor([3, 3, -1, 70, 99])
    whole = draw(labels, 100, 0, 100, 0.2, 1, 7).index.tolist()
    cuts = [0, 34, 34, 68, 100]
    parts = [draw(labels, 100, a, b, 0.2, 1, 7, aligned) for a, b in zip(cuts, cuts[1:])]
    for a, b, part in zip(cuts, cuts[1:], parts):
        size = len(part.index)
        assert size % aligned == 0 or size == b - a
        assert part.drawn.sum() <= size < part.drawn.sum() + aligned
        assert (part.active is None) == (part.drawn.sum() == size)
        assert torch.equal(part.position[part.index], torch.arange(size))
    drawn = [part.index if part.active is None else part.index[part.active] for part in parts]
    assert torch.cat([rows + a for rows, a in zip(drawn, cuts)]).tolist() == whole and {3, 70, 99} <= set(whole)


WEBFACE42M = 2_059_906


@pytest.mark.parametrize("rate, batch, ranks", [(0.2, 1024, 8), (0.3, 6144, 16), (0.3, 24_576, 64)])
def test_no_more_rows_than_are_drawn(rate, batch, ranks):
    """Shards of published runs, and two in which all positives are: what is computed is what takes part, aligned."""
    share = -(-WEBFACE42M // ranks)
    everywhere = torch.randint(WEBFACE42M, (batch,), generator=torch.Generator().manual_seed(0))
    for rank, labels in ((0, everywhere), (ranks - 1, everywhere), (0, everywhere % share), (1, everywhere % share)):
        shard = rank * share, min((rank + 1) * share, WEBFACE42M)
        sampled = draw(labels, WEBFACE42M, *shard, rate, 0, 0, 128)
        wanted, size = int(sampled.drawn.sum()), len(sampled.index)
        assert wanted <= size < wanted + 128 and size % 128 == 0
        assert set(labels[(labels >= shard[0]) & (labels < shard[1])].tolist()) <= set(
            (sampled.index[sampled.active] + shard[0]).tolist()
        )
        if labels is everywhere:
            assert size <= 1.01 * rate * (shard[1] - shard[0]) + 6 * (batch / ranks) ** 0.5 + 512


@pytest.mark.parametrize("aligned", [1, 8])
def test_batches_of_a_step_share_their_negatives(aligned):
    """Their union is little more than the largest of them, and holds what any of them holds."""
    batches = [torch.arange(40), torch.arange(40, 45).repeat(8), torch.tensor([-1]), torch.tensor([400, 900])]
    samples = [draw(labels, 1000, 0, 500, 0.1, 3, 7, aligned) for labels in batches]
    together = union(samples)
    rows = [set(sampled.drawn.nonzero()[:, 0].tolist()) for sampled in samples]
    assert set(together.drawn.nonzero()[:, 0].tolist()) == set().union(*rows)
    taken = together.index if together.active is None else together.index[together.active]
    assert set(taken.tolist()) == set().union(*rows)
    assert len(together.index) <= max(map(len, rows)) + 40 + 5 + 1 + aligned
    negatives = [row - set(labels.tolist()) for row, labels in zip(rows, batches)]
    assert negatives[0] < negatives[1] < negatives[2]


def prepared(head, labels, monkeypatch):
    """A step's loss and gradient, and how often the head drew for it, before the forward pass and in all."""
    calls = []
    monkeypatch.setattr(losses.head.partial_fc, "draw", lambda *args: calls.append(1) or draw(*args))
    head.prepare(labels)
    before = len(calls)
    x = problem(classes=100)[0].requires_grad_()
    loss = head(x, labels).loss
    loss.backward()
    return loss, x.grad, before, len(calls)


@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("margin", ["arcface", "broadface"])
def test_a_step_prepared_is_the_same(margin, mode, monkeypatch):
    labels = problem(classes=100)[1]
    results = []
    for ahead in (True, False):
        head = PartialFC(create_margin(margin), 16, 100, sample_rate=0.2, mode=mode)
        head(problem(classes=100, seed=1)[0], problem(classes=100, seed=1)[1])  # fills the queue
        if not ahead:
            head.prepare(labels.clone())  # not the tensor that the forward pass gets
            monkeypatch.setattr(PartialFC, "prepare", lambda self, labels: None)
        results.append(prepared(head, labels, monkeypatch))
    assert results[0][2:] == (1, 1) and results[1][2:] == (0, 1)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_classes_of_the_queue_take_part():
    head = PartialFC(create_margin("broadface", queue_size=60), 16, 1000, sample_rate=0.05)
    seen = set()
    for seed in range(3):
        embeddings, labels, _ = problem(classes=1000, seed=seed)
        seen |= set(labels.tolist())
        head.prepare(labels)
        assert seen <= set(head._prepared.sampled.index.tolist())
        head(embeddings, labels)
    head.eval()
    head.prepare(labels)
    assert not seen <= set(head._prepared.sampled.index.tolist())


def on_rank(cuts):
    import torch.distributed as dist

    part = slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])
    results = []
    for ahead in (True, False):
        head = PartialFC(create_margin("arcface"), 16, 100, sample_rate=0.2, uneven_batches=True)
        embeddings, labels, _ = problem(classes=100)
        mine = labels[part]
        if ahead:
            head.prepare(mine)
        results.append(head(embeddings[part], mine).loss.item())
    return results


def test_ranks_prepare_together(ranks):
    head = PartialFC(create_margin("arcface"), 16, 100, sample_rate=0.2)
    expected = head(*problem(classes=100)[:2]).loss.item()
    for ahead, without in ranks(2, on_rank, [0, 5, 12]):
        assert ahead == without and abs(ahead - expected) < 1e-5 * expected


def test_the_sample_changes_with_the_update():
    """Not with the forward pass; and with an update that is not taken, too."""
    head = PartialFC(create_margin("arcface"), 16, 100, sample_rate=0.2)
    optimizer = CentreOptimizer(head, lr=0.0, momentum=0.0, weight_decay=0.0)
    embeddings, labels, _ = problem(classes=100)
    losses_of = []
    for _ in range(2):
        losses_of.append([head(embeddings, labels).loss.item() for _ in range(2)])
        optimizer.step(torch.tensor(False))
    assert head.step == 2
    assert losses_of[0][0] == losses_of[0][1] != losses_of[1][0] == losses_of[1][1]


@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_rows_that_fill_up_change_nothing(mode, monkeypatch):
    """As on a GPU; also logits of theirs that are far above the log-sum-exp of those that take part.

    Of 40 rows, for their 16 dimensions so many that some tiles are computed again.
    """
    embeddings, labels, centres = problem(40, classes=100)
    results = []
    for aligned in (1, 64):
        monkeypatch.setattr(losses.head.partial_fc, "draw", partial(draw, aligned=aligned))
        head = PartialFC(create_margin("arcface", s=300.0), 16, 100, sample_rate=0.2, mode=mode, tile=24)
        head.load_state_dict({"weight": centres})
        left_out = ~draw(labels, 100, 0, 100, 0.2, 0, 0).drawn
        head.weight.data[left_out] = embeddings[0]
        optimizer = CentreOptimizer(head, lr=0.1, fused=mode == "streamed")
        x = embeddings.clone().requires_grad_()
        loss = head(x, labels).loss
        loss.backward()
        optimizer.step()
        results.append((loss.detach(), x.grad, head.weight.detach()))
    for exact, filled in zip(*results):
        close(filled, exact)
