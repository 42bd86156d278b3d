"""Margin warm-up and stages of sampling: by their formulas, in the loss, and in runs that are resumed."""

import pytest
import torch

from losses import CentreOptimizer, PartialFC, create_margin
from tests.losses.families import batch
from tests.losses.support import close
from tests.train.support import close as close_curves
from tests.train.support import curve
from train.head_schedule import HeadSchedule
from train.sections.head import Head


def test_values():
    config = Head(
        sample_rate=0.1, warmup_epochs=0.5, stages=[dict(epoch=1.1, sample_rate=0.3), dict(epoch=2, sample_rate=1)]
    )
    schedule = HeadSchedule(config, 10)
    assert [schedule.margin_share(step) for step in range(7)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    rates = [schedule.sample_rate(step) for step in range(22)]
    assert rates == [0.1] * 11 + [0.3] * 9 + [1.0] * 2
    assert HeadSchedule(Head(), 10).margin_share(0) == 1 == HeadSchedule(Head(), 10).sample_rate(99)


@pytest.mark.parametrize(
    "name, options, at_half",
    [
        ("cosface", dict(s=16, m=0.4), dict(s=16, m=0.2)),
        ("mv_softmax", dict(s=16, m=0.4), dict(s=16, m=0.2)),
        ("uniface", dict(s=16, m=0.4, b=3), dict(s=16, m=0.2, b=3)),
        ("gb_cosface", dict(s=16, m=0.2), dict(s=16, m=0.1)),
        ("sphereface2", dict(s=16, m=0.4), dict(s=16, m=0.2)),
        ("sphereface_r2", dict(s=16, m=1.4), dict(s=16, m=1.2)),
    ],
)
@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_half_of_a_margin_on_the_cosine_is_one_of_half_the_size(name, options, at_half, mode):
    results = []
    embeddings, labels, centres, _ = batch()
    for values, share in ((options, 0.5), (at_half, 1.0)):
        head = PartialFC(create_margin(name, **values), 16, 37, mode=mode, tile=8)
        head.load_state_dict({"weight": centres}, strict=False)
        if name == "sphereface2":  # which starts by m
            head.margin.b.data.fill_(3.0)
        head.margin.share = share
        x = embeddings.clone().requires_grad_()
        head(x, labels).loss.backward()
        results.append((x.grad, head.weight.grad))
    for ours, theirs in zip(*results):
        close(ours, theirs)


@pytest.mark.parametrize("name", ["arcface", "adaface", "curricularface", "sphereface_r1"])
def test_a_margin_on_the_angle_comes_linearly_from_none(name):
    embeddings, labels, centres, _ = batch()
    cos = (torch.nn.functional.normalize(embeddings) * torch.nn.functional.normalize(centres[labels])).sum(1)
    head = PartialFC(create_margin(name), 16, 37)
    view, _ = head._view(torch.nn.functional.normalize(embeddings), labels, embeddings.norm(dim=1), None)
    whole = head.margin.target(cos, view)
    for share in (0.0, 0.25, 1.0):
        head.margin.share = share
        close(head.margin.own(cos, view), share * whole + (1 - share) * head.margin.s * cos)


def test_all_classes_take_part_when_the_rate_becomes_one():
    embeddings, labels, centres, _ = batch()
    head = PartialFC(create_margin("arcface"), 16, 37, sample_rate=0.3)
    head.load_state_dict({"weight": centres}, strict=False)
    optimizer = CentreOptimizer(head, lr=0.1, fused=True)
    for rate in (0.3, 1.0, 0.3):
        head.sample_rate = rate
        before = head.weight.detach().clone()
        head.prepare(labels)
        head(embeddings, labels).loss.backward()
        optimizer.step()
        moved = (head.weight != before).any(1)
        assert moved.all() if rate == 1 else not moved.all()


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(margin="scf", warmup_epochs=1), "scf has no margin"),
        (dict(mode="dense", stages=[dict(epoch=1, sample_rate=1)]), "head.fused and head.mode=streamed"),
        (dict(stages=[dict(epoch=2, sample_rate=1), dict(epoch=1, sample_rate=1)]), "one after the other"),
    ],
)
def test_what_does_not_go_together(values, words):
    with pytest.raises(ValueError, match=words):
        Head(**values)


@pytest.mark.slow
def test_runs_go_on_with_their_schedule(config, finish, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    head = "head={margin: arcface, s: 16, m: 0.2, sample_rate: 0.5, warmup_epochs: 1}"
    every = ["schedule={epochs: 1.34, name: constant}", head, "head.stages=[{epoch: 1, sample_rate: 1}]"]
    finish(config, f"output={whole}", *every)
    finish(config, f"output={parts}", *every, "schedule.epochs=0.67")
    finish(config, f"output={parts}", *every, "data.batch_size=8", ranks=2)
    close_curves(curve(parts), curve(whole))
