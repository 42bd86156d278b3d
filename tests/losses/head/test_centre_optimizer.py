"""Updates of centres: against torch.optim, fused against plain, on any number of ranks, through checkpoints."""

from functools import partial

import pytest
import torch
import torch.distributed.checkpoint as dcp

import losses.head.partial_fc
from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.sampling import draw
from tests.losses.support import RULES, THEIRS, close, problem


def make(centres, rule, head_options=None, **options):
    head_options = {"tile": 8, "seed": 4, **(head_options or {})}
    head = PartialFC(create_margin("arcface"), centres.shape[1], len(centres), **head_options)
    head.load_state_dict({"weight": centres})
    return head, CentreOptimizer(head, **RULES[rule], **options)


def train(head, optimizer, batches, accumulate=1):
    for index, (x, y) in enumerate(batches):
        head(x.requires_grad_(), y).loss.backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
    return head.weight.detach().clone()


def batches(count=4, classes=37, rows=12):
    return [problem(rows, seed=seed, classes=classes)[:2] for seed in range(count)]


@pytest.mark.parametrize("rule", RULES)
def test_equals_torch(rule):
    centres = problem()[2]
    ours = train(*make(centres, rule), batches())
    head = PartialFC(create_margin("arcface"), 16, 37)
    head.load_state_dict({"weight": centres})
    options = {key: value for key, value in RULES[rule].items() if key != "algorithm"}
    optimizer = THEIRS[rule](head.parameters(), **options)
    for x, y in batches():
        optimizer.zero_grad()
        head(x, y).loss.backward()
        optimizer.step()
    close(ours, head.weight.detach(), 1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [12, 40])  # of both the tiles keep what they computed: of all 37 centres, of 14
def test_fused_equals_plain(rule, rate, rows):
    centres = problem()[2]
    plain = train(*make(centres, rule, dict(sample_rate=rate)), batches(rows=rows))
    head, optimizer = make(centres, rule, dict(sample_rate=rate), fused=True)
    fused = train(head, optimizer, batches(rows=rows))
    close(fused, plain, 1e-5)
    assert head.weight.grad is None
    assert not torch.equal(plain, centres)


def row_by_row(centres, rule, rate, batches, accumulate):
    """By torch's optimisers, one a row, given the sum of the batches' gradients where one of them drew the row."""
    head = PartialFC(create_margin("arcface"), centres.shape[1], len(centres), sample_rate=rate, seed=4)
    options = {key: value for key, value in RULES[rule].items() if key != "algorithm"}
    rows = [torch.nn.Parameter(row.clone()) for row in centres]
    optimizers = [THEIRS[rule]([row], **options) for row in rows]
    for first in range(0, len(batches), accumulate):
        head.load_state_dict({"weight": torch.stack([row.detach() for row in rows]), "step": first // accumulate})
        head.weight.grad = None
        drawn = torch.zeros(len(centres), dtype=torch.bool)
        for x, y in batches[first : first + accumulate]:
            head(x, y).loss.backward()
            drawn |= draw(y, len(centres), 0, len(centres), rate, 4, head.step).drawn
        for row, optimizer, gradient, taken in zip(rows, optimizers, head.weight.grad.to_dense(), drawn):
            row.grad = gradient if taken or rate == 1 else None
            optimizer.step()
    return torch.stack([row.detach() for row in rows])


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("aligned", [1, 16])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("rule", RULES)
def test_accumulated_batches(rule, rate, aligned, rows, monkeypatch):
    """Three batches and a step are one step along the sum of their gradients, however it is made."""
    monkeypatch.setattr(losses.head.partial_fc, "draw", partial(draw, aligned=aligned))
    centres, whole = problem()[2], batches(6, rows=rows)
    expected = row_by_row(centres, rule, rate, whole, 3)
    for fused in (False, True):
        close(train(*make(centres, rule, dict(sample_rate=rate), fused=fused), whole, accumulate=3), expected, 1e-5)


def accumulate_shares(rule, fused):
    head, optimizer = make(problem()[2], rule, dict(sample_rate=0.3), fused=fused)
    train_shares(head, optimizer, batches(4), accumulate=2)
    return head.weight.detach().clone()


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_batches_of_ranks(ranks, rule):
    expected = row_by_row(problem()[2], rule, 0.3, batches(4), 2)
    for fused in (False, True):
        close(torch.cat(ranks(2, accumulate_shares, rule, fused)), expected, 1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fused", [False, True])
def test_rows_not_drawn_are_untouched(rule, fused):
    centres = problem(classes=300)[2]
    head, optimizer = make(centres, rule, dict(sample_rate=0.1), fused=fused)
    for tensor in optimizer.state.values():
        tensor.fill_(0.25)
    before = {"weight": head.weight.detach().clone(), **{k: v.clone() for k, v in optimizer.state.items()}}
    (x, y), *_ = batches(1, 300)
    train(head, optimizer, [(x, y)])
    drawn = draw(y, 300, 0, 300, 0.1, 4, 0).drawn
    for name, old in before.items():
        new = head.weight.detach() if name == "weight" else optimizer.state[name]
        assert torch.equal(new[~drawn], old[~drawn]), name
        assert (new[drawn] != old[drawn]).any(1).all(), name


def test_a_new_optimiser_takes_the_place_of_the_old_one():
    """A plain one too: the gradient goes where it looks, not to the fused one from before."""
    centres = problem()[2]
    expected = train(*make(centres, "sgd"), batches())
    head, fused = make(centres, "sgd", fused=True)
    plain = CentreOptimizer(head, **RULES["sgd"])
    close(train(head, plain, batches()), expected, 1e-6)
    assert not fused.state["momentum"].any()


WAYS = {
    "plain": {},
    "dense": dict(mode="dense"),
    "plain, sampled": dict(sample_rate=0.3),
    "fused": dict(fused=True),
    "fused, sampled": dict(sample_rate=0.3, fused=True),
    "fused, two batches": dict(fused=True, accumulate=2),
    "sampled, two batches": dict(sample_rate=0.3, accumulate=2),
    "fused, sampled, two batches": dict(sample_rate=0.3, fused=True, accumulate=2),
    "fused, triton": dict(fused=True, kernels="triton", tile=40),
    "sampled, triton": dict(fused=True, kernels="triton", tile=40, sample_rate=0.3),
}
WITHOUT_TRITON = [name for name in WAYS if "triton" not in name]  # whose interpreter takes its time


def way(name, rule):
    """Head, its optimiser and their tensors after a step, and two more batches."""
    options = dict(WAYS[name])
    fused, accumulate = options.pop("fused", False), options.pop("accumulate", 1)
    head, optimizer = make(problem()[2], rule, options, fused=fused)
    train(head, optimizer, batches(accumulate), accumulate)
    return head, optimizer, {"weight": head.weight.detach(), **optimizer.state}, batches(6, rows=9)[-accumulate:]


def backward(head, batches, scale=1.0):
    for x, y in batches:
        (head(x.requires_grad_(), y).loss * scale).backward()


def snapshot(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WITHOUT_TRITON)  # nor do its kernels divide
def test_gradients_are_divided_by_their_scale(name, rule, scale):
    head, optimizer, expected, batches = way(name, rule)
    backward(head, batches)
    optimizer.step()
    head, optimizer, tensors, batches = way(name, rule)
    optimizer.grad_scale = scale
    backward(head, batches, 1024)
    optimizer.step()
    for key, value in tensors.items():
        close(value, expected[key], 1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WAYS)
def test_a_step_not_taken_changes_no_bit(name, rule):
    """Decided by the host, as on a CPU, and by a mask, as on a GPU; also where all gradients are NaN."""
    head, optimizer, tensors, batches = way(name, rule)
    before = snapshot(tensors)
    no = torch.tensor(False)
    for factor in (1.0, torch.nan):
        for leave_out in (optimizer.step, optimizer._apply):
            backward(head, [(x.detach() * factor, y) for x, y in batches])
            assert optimizer.finite() == (factor == 1)
            leave_out(no)
            optimizer.zero_grad()
            optimizer.step()
            for key, value in tensors.items():
                assert torch.equal(value.view(torch.int32), before[key].view(torch.int32)), (key, factor, leave_out)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WAYS)
def test_a_step_taken_is_the_same_however_it_is_said(name, rule):
    """Up to rounding where it is said on a GPU, which multiplies by 1 then."""
    results = []
    for say in (lambda o: o.step(), lambda o: o.step(torch.tensor(True)), lambda o: o._apply(torch.tensor(True))):
        head, optimizer, tensors, batches = way(name, rule)
        before = snapshot(tensors)
        backward(head, batches)
        say(optimizer)
        assert not torch.equal(tensors["weight"], before["weight"])
        results.append(tensors)
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
        torch.testing.assert_close(results[2][key], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name, value",
    [(name, torch.nan) for name in WAYS] + [(name, sign * torch.inf) for name in WITHOUT_TRITON for sign in (1, -1)],
)
def test_what_is_not_finite_is_seen(name, value):
    """In one number of an embedding, of a class or of none, or in the loss's gradient alone."""
    head, optimizer, _, batches = way(name, "sgd")
    assert optimizer.finite() and optimizer.finite().dtype == torch.bool
    for label in (3, -1):
        x, y = (part.clone().detach() for part in batches[-1])
        x[2, 5], y[2] = value, label
        backward(head, [*batches[:-1], (x, y)])
        assert not optimizer.finite()
        optimizer.zero_grad()
        assert optimizer.finite()
    backward(head, batches, value)
    assert not optimizer.finite()


@pytest.mark.parametrize("rows", [12, 40])
def test_a_second_backward_pass_is_another_batch(rows):
    """What the first one used up is computed again."""
    results = []
    for again in (False, True):
        head, optimizer = make(problem()[2], "sgd", fused=True)
        x, y = batches(1, rows=rows)[0]
        x.requires_grad_()
        loss = head(x, y).loss
        loss.backward(retain_graph=again)
        if again:
            loss.backward()
        else:
            head(x, y).loss.backward()
        optimizer.step()
        results.append((x.grad, head.weight.detach()))
    for once, twice in zip(*results):
        close(twice, once, 1e-5)


def test_what_a_batch_keeps_is_no_more_than_the_centres_and_goes_with_the_step():
    for rows in (12, 40):
        head, optimizer = make(problem()[2], "sgd", fused=True)
        backward(head, batches(2, rows=rows))
        kept = [d for batch in optimizer._batches for d in batch.d_products.values()]
        assert 0 < sum(d.numel() for d in kept) <= head.weight.numel()
        assert all(tile.kept is None for batch in optimizer._batches for tile in batch.centre_pass.kept)
        optimizer.step()
        assert not optimizer._batches


# -- checkpoints on other numbers of ranks -----------------------------------------------------------------------------


def save(folder, rule, rate):
    head, optimizer = make(problem(classes=11)[2], rule, dict(sample_rate=rate))
    whole = batches(3, 11)
    train_shares(head, optimizer, whole)
    dcp.save({"head": head.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=folder)


def train_shares(head, optimizer, whole, accumulate=1):
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shares = [(x.tensor_split(world)[rank], y.tensor_split(world)[rank]) for x, y in whole]
    train(head, optimizer, shares, accumulate)


def load_and_train(folder, rule, rate):
    head, optimizer = make(torch.zeros(11, 16), rule, dict(sample_rate=rate))
    state = {"head": head.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    head.load_state_dict(state["head"])
    loaded = head.weight.detach().clone()
    train_shares(head, optimizer, batches(5, 11)[3:])
    return loaded, head.weight.detach().clone(), head.step


def load_each(folders, rule, rate):
    return [load_and_train(folder, rule, rate) for folder in folders]


@pytest.mark.parametrize("rule, rate", [("sgd", 0.5), ("adamw", 1.0)])
def test_checkpoint_on_any_number_of_ranks(ranks, tmp_path, rule, rate):
    head, optimizer = make(problem(classes=11)[2], rule, dict(sample_rate=rate))
    at_save = train(head, optimizer, batches(3, 11))
    expected = train(head, optimizer, batches(5, 11)[3:])
    folders = [str(tmp_path / str(world)) for world in (1, 2, 3, 4)]
    for world, folder in enumerate(folders, 1):
        ranks(world, save, folder, rule, rate)
    for other in (1, 2, 3, 4):
        for results in zip(*ranks(other, load_each, folders, rule, rate)):  # of one folder, by rank
            close(torch.cat([loaded for loaded, *_ in results]), at_save, 1e-5)
            close(torch.cat([after for _, after, _ in results]), expected, 1e-4)
            assert all(step == 5 for *_, step in results)
