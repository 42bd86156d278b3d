"""Steps that are not finite: left out on all ranks, in all parts alike, whatever the precision; never saved."""

import json
import math
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evaluate.features.ranks import World
from models.registry import BACKBONES
from models.sharded import read_sharded
from tests.train.plain_run import Normalised
from tests.train.support import spoilt
from train.config import load_config
from train.gate import SoundBuffers, StepGate
from train.state import snapshot
from train.step_folders import complete
from train.trainer import Trainer


class Poisoned(Trainer):
    """A run in which something is not finite in one step, on one rank."""

    what, at, rank = "", 0, 0

    def train_step(self, batches):
        if self.step != self.at or self.world.rank != self.rank:
            return super().train_step(batches)
        if self.what == "image":
            return super().train_step(spoilt(batches))
        change = self.learner._change

        def poisoned(*given):
            self.poison()
            change(*given)

        with patch.object(self.learner, "_change", poisoned):
            return super().train_step(batches)

    def poison(self):
        """When the gradients have been exchanged: the other rank knows nothing of it."""
        learner = self.learner
        if self.what == "gradient":
            next(learner.backbone.parameters()).grad[0, 0, 0, 0] = math.inf
        if self.what == "centre" and learner.centre_optimizer.fused:
            learner.centre_optimizer._batches[0].d_reduced[0] = math.nan
        elif self.what == "centre":
            learner.head.weight.grad[0] = math.nan


def make(config, overrides, what="", at=0, rank=0):
    BACKBONES["plain"] = Normalised
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    trainer = Poisoned(load_config(config, overrides), world)
    trainer.what, trainer.at, trainer.rank = what, at, rank
    return trainer


def learnt(trainer):
    """Everything an update changes, copied."""
    learner = trainer.learner
    parts = [*learner.backbone.parameters(), learner.head.weight, *learner.centre_optimizer.state.values()]
    for state in learner.optimizer.state.values():
        parts += state.values()
    return [tensor.detach().clone() for tensor in parts]


def steps_around(config, overrides, what, rank):
    """What has been learnt before and behind the bad step 3, the steps left out, whether all that follows is finite."""
    trainer = make(config, overrides, what, at=3, rank=rank)
    batches = iter(trainer.loader)
    for _ in range(3):
        trainer.train_step(batches)
    skipped = trainer._settle()
    before = learnt(trainer)
    trainer.train_step(batches)
    behind = learnt(trainer)
    skipped = trainer._settle() - skipped
    buffers = all(buffer.isfinite().all() for buffer in trainer.learner.backbone.buffers())
    for _ in range(2):
        trainer.train_step(batches)
    moved = learnt(trainer)
    trainer.loader.close()
    trainer.folder.release()
    same = all(torch.equal(a, b) for a, b in zip(before, behind))
    goes_on = not torch.equal(behind[0], moved[0]) and all(tensor.isfinite().all() for tensor in moved)
    return same, skipped, buffers, goes_on


SETTINGS = {
    "sgd": [],
    "adamw, centres too": ["optim.name=adamw", "optim.lr=0.001"],
    "muon, centres by lion": ["optim.name=muon", "optim.lr=0.001", "head.optim.name=lion"],
    "bf16": ["precision=bf16"],
    "no clipping": ["optim.clip=null"],
    "dense": ["head.mode=dense", "head.fused=false"],
    "unfused": ["head.fused=false"],
    "accumulated": ["data.batch_size=4", "optim.accumulate=2"],
}


@pytest.mark.parametrize("what", ["gradient", "image", "centre"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_that_is_not_finite_changes_nothing(ranks, config, tmp_path, what, name):
    overrides = [f"output={tmp_path}/run", *SETTINGS[name]]
    assert ranks(1, steps_around, config, overrides, what, 0) == [(True, 1, True, True)]


@pytest.mark.parametrize("what", ["gradient", "image", "centre"])
@pytest.mark.parametrize("rank", [0, 1])
def test_on_all_ranks_together(ranks, config, tmp_path, what, rank):
    overrides = [f"output={tmp_path}/run", "data.batch_size=8"]
    assert ranks(2, steps_around, config, overrides, what, rank) == [(True, 1, True, True)] * 2


def test_with_a_loss_scale(ranks, config, tmp_path):
    """fp16 starts with a scale that is too great; the bad step is one more than those that it takes to find one."""
    overrides = [f"output={tmp_path}/run", "precision=fp16"]
    same, skipped, buffers, _ = ranks(1, steps_around, config, overrides, "gradient", 0)[0]
    assert same and skipped == 1 and buffers


def fit(config, overrides, what="", at=0):
    trainer = make(config, overrides, what, at)
    trainer.fit()


def fit_error(config, overrides):
    with pytest.raises(ValueError) as raised:
        fit(config, overrides)
    return str(raised.value)


def test_the_run_goes_on_and_tells_of_it(ranks, config, tmp_path):
    """With the log at other steps than the checkpoints: none of them has anything of the bad step."""
    overrides = [f"output={tmp_path}/run", "log.every_steps=6", "checkpoint.keep=9"]
    ranks(1, fit, config, overrides, "gradient", 9)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("skipped_steps")) for line in lines] == [(6, None), (12, 1), (18, 1)]
    assert len(complete(tmp_path / "run/checkpoints")) == 5
    for path in complete(tmp_path / "run/checkpoints"):
        assert all(tensor.isfinite().all() for tensor in read_sharded(path).values())


def test_a_window_without_a_finite_loss(ranks, config, tmp_path):
    ranks(1, fit, config, [f"output={tmp_path}/run"], "image", 4)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["loss"] is None] == [5]
    assert all(math.isfinite(value) for line in lines for value in line.values() if value is not None)


def test_too_many_in_a_row(ranks, config, tmp_path):
    """A rate that no network survives: a line that names the last good checkpoint, and nothing bad on the disk."""
    settings = ["optim.lr=1e30", "optim.clip=null", "schedule.epochs=6", "checkpoint.every_steps=1"]
    overrides = [f"output={tmp_path}/run", *settings, "optim.max_skipped=5", "log.every_steps=7", "checkpoint.keep=99"]
    (error,) = ranks(1, fit_error, config, overrides)
    assert "not finite in 5 steps in a row" in error and "lower optim.lr" in error
    good = complete(tmp_path / "run/checkpoints")
    assert f"The last good checkpoint is {good[-1]}" in error
    for path in good:
        for section in ("backbone", "head"):
            assert all(tensor.isfinite().all() for tensor in read_sharded(path, section).values())


def votes(bad_rank):
    gate = StepGate(torch.device("cpu"), scaled=True)
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), 2.0**16)
    good = gate.decide([parameter], None).item()
    gradient = parameter.grad.clone()
    parameter.grad = torch.full((3,), math.inf if dist.get_rank() == bad_rank else 1.0)
    bad = gate.decide([parameter], None).item()
    behind = gate.scale.item(), gate.skipped.tolist()
    parameter.grad = torch.ones(3)
    gate.decide([parameter], 1.0)
    return good, gradient, bad, behind, parameter.grad, gate.skipped.tolist()


def test_the_scale_falls_on_all_ranks_together(ranks):
    for good, gradient, bad, behind, clipped, skipped in ranks(2, votes, 1):
        assert good and torch.equal(gradient, torch.ones(3))
        assert not bad and behind == (2.0**15, [1, 1])
        assert skipped == [1, 0] and clipped == pytest.approx(torch.full((3,), 2.0**-15))


def test_the_scale_grows(monkeypatch, ranks):
    assert ranks(1, grown) == [[2.0**16, 2.0**17, 2.0**17, 2.0**18, 2.0**17, 2.0**17, 2.0**18]]


def test_a_scale_that_grows_divides_no_gradient(ranks, config, tmp_path):
    """It grows before the centres move, whose gradients are of the scale before."""
    expected, moved = (
        ranks(1, two_steps, config, [f"output={tmp_path}/{interval}", "precision=fp16"], interval)[0]
        for interval in (3, 2)
    )
    for ours, theirs in zip(moved, expected, strict=True):
        assert torch.equal(ours, theirs)


def two_steps(config, overrides, interval):
    """What is learnt by steps at a scale that leaves none out."""
    trainer = make(config, overrides)
    trainer.learner.gate.scale.fill_(2.0)
    trainer.learner.gate.growth_interval = interval
    batches = iter(trainer.loader)
    for _ in range(2):
        trainer.train_step(batches)
    return learnt(trainer)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_scale_of_another_precision_says_nothing(scaled):
    """In fp16 a loss that is not scaled loses its small gradients; else nothing divides by the scale."""
    other, gate, fresh = (StepGate(torch.device("cpu"), scaled=which) for which in (not scaled, scaled, scaled))
    gate.load_state_dict({**other.state_dict(), "good_steps": torch.tensor(7)})
    assert gate.state_dict() == fresh.state_dict()


def grown():
    gate = StepGate(torch.device("cpu"), scaled=True)
    gate.growth_interval = 2
    scales = []
    for step in range(7):
        gate.decide([], None, torch.tensor(step != 4))
        scales.append(gate.scale.item())
    return scales


def test_a_first_step_left_out_leaves_no_momentum():
    """torch's fused SGD makes the momentum at the first step, of whatever lies in memory where it is left out."""
    from train.optim import create_optimizer
    from train.sections.optim import Optim

    layer = nn.Linear(4, 4)
    optimizer = create_optimizer([{"params": list(layer.parameters()), "lr_scale": 1.0}], Optim())
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    StepGate.step(optimizer, torch.tensor(False))
    for parameter in layer.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.zeros_like(parameter))


def test_buffers_go_back_to_the_last_sound_ones():
    layer = nn.BatchNorm1d(3)
    buffers = SoundBuffers(layer, layer)
    layer.running_mean.fill_(2.0)
    buffers.settle(torch.tensor(False))
    layer.running_mean.fill_(5.0)
    layer.running_var[1] = math.nan
    buffers.settle(torch.tensor(False))
    assert layer.running_mean.tolist() == [5.0] * 3 and layer.running_var.tolist() == [1.0] * 3
    layer.running_mean.fill_(1e30)  # finite, and of a loss that was not
    buffers.settle(torch.tensor(True))
    assert layer.running_mean.tolist() == [5.0] * 3


def test_a_snapshot_keeps_the_loss_scale_of_its_step():
    """It is read behind the loop, while the next step may already be refused."""
    gate = StepGate(torch.device("cpu"), scaled=True)
    before = snapshot(gate)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), math.nan)
    with patch.object(dist, "get_world_size", return_value=1):
        gate.decide([parameter], None, torch.tensor(True))
    assert gate.scale < before["scale"] == 2**16 and before["good_steps"] == 0
