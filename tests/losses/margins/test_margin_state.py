"""The state of every margin family: saved, left alone, the batch's own, and the same on any number of ranks."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from losses import CentreOptimizer, PartialFC, create_margin
from tests.losses import naive
from tests.losses.families import FAMILIES, batch, make, state, step
from tests.losses.support import close


@pytest.mark.parametrize("name", FAMILIES)
def test_state_is_saved_and_restored(name):
    batches = [batch(seed) for seed in range(4)]
    centres = batches[0][2]
    head = make(name, centres)
    for embeddings, labels, _, uniform in batches[:3]:
        step(head, embeddings, labels, uniform)
    saved = {key: value.clone() for key, value in head.state_dict().items()}
    expected = step(head, batches[3][0], batches[3][1], batches[3][3])
    again = make(name, torch.zeros_like(centres))
    again.load_state_dict(saved)
    for ours, theirs in zip(step(again, batches[3][0], batches[3][1], batches[3][3]), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_state_rests_in_evaluation_and_over_broken_batches(name):
    embeddings, labels, centres, uniform = batch()
    head = make(name, centres)
    step(head, embeddings, labels, uniform)
    before = {key: value.clone() for key, value in state(head).items()}
    head.eval()
    head(embeddings + 1, labels, uniform=uniform)
    assert all(torch.equal(value, before[key]) for key, value in state(head).items())
    head.train()
    for rows, classes in ((embeddings * torch.nan, labels), (embeddings, torch.full_like(labels, -1))):
        head(rows, classes, uniform=uniform)
        if name == "broadface":  # whose queue moves on
            assert all(value.isfinite().all() for value in state(head).values())
        else:
            assert all(torch.equal(value, before[key]) for key, value in state(head).items())


def behind(name, batches):
    """A step of a clean batch behind others; no buffer is ever other than finite."""
    head = make(name, batch()[2])
    assert all(tensor.isfinite().all() for tensor in state(head).values())
    for embeddings, labels, _, uniform in batches:
        step(head, embeddings, labels, uniform)
        assert all(tensor.isfinite().all() for tensor in state(head).values())
    last = batch(2)
    return step(head, last[0], last[1], last[3])


@cache
def behind_the_rest(name, before, broken):
    """The same step where the first ``broken`` rows of the batch in front of it had not been there."""
    embeddings, labels, centres, uniform = batch(1)
    labels[:broken] = -1
    rest = [(embeddings, labels, centres, uniform)] if name == "broadface" else []  # whose queue takes them
    return behind(name, [batch(seed) for seed in range(before)] + rest)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_are_not_finite_leave_no_trace(name, value):
    """The clean batch behind them has the loss that it has without them, and no buffer is ever other than finite.

    1e30 is finite, but not the norm of a row of it. The first batch is one of those that may be broken, too.
    """
    for broken in (1, 12):
        for before in (0, 1):
            spoilt = batch(1)
            spoilt[0][:broken, 3 if value != 1e30 else slice(None)] = value
            with_them = behind(name, [*(batch(seed) for seed in range(before)), spoilt])
            for ours, theirs in zip(with_them, behind_the_rest(name, before, broken), strict=True):
                assert torch.equal(ours, theirs)


def test_a_boundary_begins_with_the_first_batch_that_has_a_class():
    """At the mean of the middles between own class and log-sum-exp of the others, by hand."""
    embeddings, labels, centres, uniform = batch()
    head = PartialFC(create_margin("gb_cosface", s=32, low=-1, high=1), centres.shape[1], len(centres))
    with torch.no_grad():
        head.weight.copy_(centres)
    step(head, embeddings, torch.full_like(labels, -1), uniform)
    step(head, embeddings, labels, uniform)
    cosines = F.normalize(embeddings.double()) @ F.normalize(centres.double()).T
    own = naive.own(cosines, labels)
    others = (32 * cosines.scatter(1, labels[:, None], -torch.inf)).logsumexp(1) / 32
    close(head.margin.boundary, ((own + others) / 2).mean(), 1e-5)


def test_a_boundary_of_an_older_checkpoint_that_has_not_begun():
    embeddings, labels, centres, uniform = batch()
    head, expected = (make("gb_cosface", centres) for _ in range(2))
    head.margin.boundary.fill_(torch.nan)
    assert torch.equal(step(head, embeddings, labels, uniform)[0], step(expected, embeddings, labels, uniform)[0])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "scf"])
def test_a_fused_update_uses_its_own_batch_state(name):
    """Two batches of very different difficulty, then one pass over the centres for both."""
    easy, hard = batch(0), batch(1)
    updates = []
    for options in ({}, {"fused": True}):
        head = make(name, easy[2], tile=8)
        optimizer = CentreOptimizer(head, lr=0.1, **options)
        for factor, (embeddings, labels, _, uniform) in ((1, easy), (-1, hard)):
            head(factor * embeddings, labels, uniform=uniform).loss.backward()
        optimizer.step()
        updates.append(head.weight.detach() - easy[2])
    close(updates[1], updates[0], 1e-4)


def test_broadface_trains_centres_with_the_past_and_the_encoder_without():
    """Against the definition, over a queue that wraps, with centres that move in between and rows without a class."""
    centres = batch()[2]
    head = make("broadface", centres)
    queue, w = [], centres.double()
    for seed in range(5):
        embeddings, labels, _, uniform = batch(seed, rows=9)
        labels[seed] = -1
        _, gx, gw = step(head, embeddings, labels, uniform)
        keep = labels >= 0
        _, ex, _ = naive.family(embeddings, w, labels, uniform, FAMILIES["broadface"][1])
        past = [x + x.norm() / then.norm() * (w[y] - then) for x, y, then in queue if y >= 0]
        rows = torch.stack([*past, *embeddings[keep].double()])
        classes = torch.tensor([y for _, y, _ in queue if y >= 0] + labels[keep].tolist())
        _, _, ew = naive.family(rows, w, classes, torch.zeros(len(rows)), FAMILIES["broadface"][1])
        close(gx, ex, 1e-4)
        close(gw, ew, 1e-4)
        queue = (queue + [(x.double(), int(y), w[y].clone()) for x, y in zip(embeddings, labels)])[-20:]
        with torch.no_grad():
            head.weight -= 2 * gw
        w = head.weight.detach().double()
    assert len(queue) == 20


# -- ranks -----------------------------------------------------------------------------------------------------------


def on_rank(names, mode, rate, classes):
    """Three batches of every family: losses, gradients over world size, and the state at the end."""
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    results = {}
    for name in names:
        head = make(name, batch(classes=classes)[2], mode=mode, tile=6, sample_rate=rate)
        steps = []
        for seed in range(3):
            whole = batch(seed, classes=classes)
            embeddings, labels, _, uniform = (part.tensor_split(world)[rank] for part in whole)
            labels[0] = -1
            loss, gx, gw = step(head, embeddings, labels, uniform)
            with torch.no_grad():
                head.weight -= 0.5 * gw
            steps.append((loss, gx / world, gw))
        results[name] = steps, {key: value.clone() for key, value in state(head).items()}
    return results


@pytest.mark.parametrize(
    "mode, rate, classes, worlds",
    [
        ("streamed", 1, 37, (1, 2, 4)),
        ("dense", 1, 37, (2,)),
        ("streamed", 0.4, 37, (4,)),
        ("streamed", 1, 3, (4,)),  # one of which has no class
    ],
)
def test_any_number_of_ranks(ranks, mode, rate, classes, worlds):
    names = list(FAMILIES)

    def without_first_labels(world):
        """What the ranks see is a batch in which the first row of every rank has no class."""
        results = {}
        for name in names:
            head = make(name, batch(classes=classes)[2], mode=mode, tile=6, sample_rate=rate)
            steps = []
            for seed in range(3):
                embeddings, labels, _, uniform = batch(seed, classes=classes)
                labels[:: 12 // world] = -1
                steps.append(step(head, embeddings, labels, uniform))
                with torch.no_grad():
                    head.weight -= 0.5 * steps[-1][2]
            results[name] = steps, state(head)
        return results

    for world in worlds:
        single, several = without_first_labels(world), ranks(world, on_rank, names, mode, rate, classes)
        for name in names:
            for at in range(3):
                loss, gx, gw = single[name][0][at]
                parts = [result[name][0][at] for result in several]
                for part in parts:
                    close(part[0], loss, 1e-4)
                close(torch.cat([part[1] for part in parts]), gx, 2e-4)
                close(torch.cat([part[2] for part in parts]), gw, 2e-4)
            for key, value in single[name][1].items():
                assert all(torch.equal(result[name][1][key], several[0][name][1][key]) for result in several), key
                close(several[0][name][1][key], value, 1e-4)
