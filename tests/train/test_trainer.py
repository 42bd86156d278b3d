"""Runs on ranks of the pool: a recipe's own parameters, large seeds, and every way out of a run."""

import json
import shutil
from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evaluate.features.ranks import World
from models.registry import BACKBONES
from tests.train.plain_run import Plain
from tests.train.support import close, curve, curves
from train.config import load_config
from train.recipes import RECIPES, Recipe, StepResult
from train.seeds import seed_generators, step_seed
from train.trainer import Trainer


class Projected(Recipe):
    """The margin loss of embeddings that pass through a learnt projection outside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def network(self, backbone: nn.Module) -> nn.Module:
        self.projection = nn.Linear(16, 16)
        return backbone

    def step(self, batch, network, head, epoch):
        self.steps += 1
        out = head(self.projection(network(batch.images)), batch.labels)
        return StepResult(out.loss)


class Fault(Exception):
    """What a step raises in a test."""


def fit(config, *overrides, fails_at=None):
    """Run a config; returns the trainer's first step, what its recipe has learnt, and the names of its parts."""
    BACKBONES["plain"], RECIPES["projected"] = Plain, Projected
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    trainer = Trainer(load_config(config, overrides), world)
    step, begun = trainer.train_step, trainer.step

    def failing(batches):
        if trainer.step == fails_at:
            raise Fault
        return step(batches)

    trainer.train_step = failing
    with pytest.raises(Fault) if fails_at else nullcontext():
        trainer.fit()
    assert trainer.loader._ahead.closed, "a closed loader decodes nothing"
    learnt = {name: tensor.clone() for name, tensor in trainer.learner.recipe.state_dict().items()}
    return begun, learnt, sorted(trainer.parts)


def same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)


OWN = ["recipe.name=projected", "optim.clip=0.5", "optim.name=adamw", "optim.lr=0.01", "head.optim.name=sgd"]


def test_parameters_of_a_recipe_are_trained_alike_on_two_ranks(ranks, config, tmp_path):
    ((_, one, parts),) = ranks(1, fit, config, f"output={tmp_path}/one", *OWN)
    assert "recipe_optimizer" in parts and one["steps"] == 18
    two = ranks(2, fit, config, f"output={tmp_path}/two", *OWN, "data.batch_size=8")
    first, second = (state for _, state, _ in two)
    same(first, second, rtol=0, atol=0)
    same(first, one, rtol=1e-3, atol=1e-4)
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))
    ((_, start, _),) = ranks(1, fit, config, f"output={tmp_path}/start", *OWN, "optim.lr=1e-12")
    assert (one["projection.weight"] - start["projection.weight"]).abs().max() > 0.01


@pytest.mark.parametrize("seed", [2048, 2**63 - 1])
def test_resumed_with_parameters_and_any_seed(ranks, config, tmp_path, seed):
    """What a recipe and a margin have learnt, their optimisers' moments and buffers go on."""
    settings = [*OWN, f"seed={seed}", "head.sample_rate=0.5", "head.margin=uniface"]
    ((_, whole, _),) = ranks(1, fit, config, f"output={tmp_path}/whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    ((begun, parts, _),) = ranks(1, fit, config, f"output={tmp_path}/parts", *settings)
    assert begun == 12
    same(parts, whole, rtol=0, atol=0)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def refused(config, *overrides):
    try:
        fit(config, *overrides)
    except ValueError as error:
        return str(error)
    except SystemExit as end:  # another rank has told it
        return end.code


def refused_on_one(config, output):
    return refused(config, f"output={output}", *["optim.lr=0.002"] * dist.get_rank())


def test_ranks_with_configs_of_their_own_do_not_begin(ranks, config, tmp_path):
    """Their replicas would drift apart without a word."""
    told, code = ranks(2, refused_on_one, config, tmp_path / "run")
    assert "optim.lr is 0.002 on rank 1, and " in told and code == 2
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_recipe_is_refused(ranks, config, tmp_path):
    ranks(1, fit, config, *OWN, "schedule.epochs=1")
    (error,) = ranks(1, refused, config, *OWN, "recipe.name=plain")
    assert "cannot resume from" in error and "it has the part recipe_optimizer, which this run has not" in error


def fail(config, step, *overrides):
    return fit(config, *overrides, fails_at=step)[0]


def test_a_fault_in_a_step_loses_no_figures(ranks, config, tmp_path):
    """Neither in a fresh run, nor in one that goes on from step 4."""
    settings = [f"output={tmp_path}/run", "log.sinks=[jsonl, tensorboard]", "checkpoint.every_steps=4"]
    for begins, fails_at in ((0, 6), (4, 7)):
        assert ranks(1, fail, config, fails_at, *settings) == [begins]
        lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, fails_at + 1))
        found = curves(tmp_path / "run")["loss"]
        assert [step for step, _ in found] == list(range(1, fails_at + 1))
        assert [value for _, value in found] == pytest.approx([line["loss"] for line in lines])


def test_seeds_of_steps():
    seeds = [step_seed(*place) for place in product((0, 7, 2**63 - 1), (0, 1, 10**7), (0, 1, 511))]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**63
    assert step_seed(2048, 5, 1) == (2048 * 1_000_003 + 5) * 65_537 + 1
    torch.manual_seed(max(seeds))


def test_generators_are_seeded_as_torch_does_it():
    torch.manual_seed(2**63 - 5)
    expected = torch.rand(4)
    torch.rand(7)
    seed_generators(2**63 - 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)


def saved(config, *overrides):
    """Steps of the checkpoints that a run writes."""
    BACKBONES["plain"] = Plain
    trainer = Trainer(
        load_config(config, overrides), World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    )
    steps, save = [], trainer.checkpoints.save
    trainer.checkpoints.save = lambda step, *rest: (steps.append(step), save(step, *rest))[1]
    trainer.fit()
    return steps


def test_when_checkpoints_are_written(ranks, config, tmp_path):
    """Epochs of 6 steps; by the clock a step after it is time, on all ranks alike."""
    rare = ["checkpoint.every_steps=1000", "data.batch_size=8"]
    epochs = [f"output={tmp_path}/epochs", "checkpoint.every_epochs=2", "schedule.epochs=4.5"]
    assert ranks(2, saved, config, *rare, *epochs) == [[12, 24, 27]] * 2
    first, second = ranks(2, saved, config, *rare, f"output={tmp_path}/time", "checkpoint.every_minutes=1e-9")
    assert first == second == list(range(2, 19))
    assert ranks(1, saved, config, f"output={tmp_path}/steps", "checkpoint.every_steps=7") == [[7, 14, 18]]


def resume_error(config, *overrides):
    BACKBONES["plain"] = Plain
    try:
        fit(config, *overrides)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    "change, words",
    [
        (["seed=3"], "its seed is 2048, here it is 3"),
        (["optim.accumulate=2"], "its global_batch is 16, here it is 32"),
        (["checkpoint.resume=never"], "holds a run"),
        (["model.name=mbf"], "its model is plain, here it is mbf"),
        (["head.num_classes=9"], "its num_classes is 8, here it is 9"),
        (
            ["optim.name=adamw"],
            "exp_avg; the config has changed at step 3: optim.name from sgd to adamw",
        ),
    ],
)
def test_another_run_is_not_resumed(ranks, config, tmp_path, change, words):
    ranks(1, fit, config, "schedule.epochs=0.5")
    (error,) = ranks(1, resume_error, config, *change)
    assert words in error


def test_other_labels_are_noticed(ranks, config, tmp_path, faces):
    """Two people change places: as many images, as many identities."""
    shutil.copytree(faces, tmp_path / "mine")
    ranks(1, fit, config, f"data.train={tmp_path}/mine", "schedule.epochs=0.5")
    for image in ("0.jpg", "1.jpg"):
        (tmp_path / "mine" / "00" / image).rename(tmp_path / "mine" / "01" / f"0{image}")
    for image in ("10.jpg", "11.jpg"):
        (tmp_path / "mine" / "02" / image).rename(tmp_path / "mine" / "00" / f"0{image}")
    (error,) = ranks(1, resume_error, config, f"data.train={tmp_path}/mine")
    assert "has other labels" in error


@pytest.mark.slow
def test_several_sets_are_resumed_on_other_ranks_with_their_weights(ranks, config, tmp_path, faces):
    """Also with a list of some identities, one of whom is in both sets."""
    (tmp_path / "few.txt").write_text("00\n03\n05\n")
    shutil.copytree(faces, tmp_path / "mine")
    few = f"{{path: {tmp_path}/mine, weight: 2.5, labels: shared, identities: {tmp_path}/few.txt}}"
    sets = f"data.train=[{{path: {faces}, labels: shared, weight: WEIGHT}}, {few}]"
    ranks(1, fit, config, sets.replace("WEIGHT", "0.75"), "head.num_classes=8")
    whole = curve(tmp_path / "run")
    assert whole[-1][0] == 3 * ((72 + 90) // 16)
    for path in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    assert ranks(2, fit, config, sets.replace("WEIGHT", "0.75"), "data.batch_size=8")[0][0] in (22, 24)
    close(curve(tmp_path / "run"), whole)
    (error,) = ranks(1, resume_error, config, sets.replace("WEIGHT", "0.7501"))
    assert "has other labels, names, sizes, weights" in error


def test_the_global_batch_stays_on_other_ranks(ranks, config, tmp_path):
    """One rank of 16, then two of 4 that take two batches each, as often as they begin; three cannot share it."""
    ranks(1, fit, config)
    whole = curve(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name != "step_000000012":
            shutil.rmtree(path)
    assert [begun for begun, _, _ in ranks(2, fit, config, "data.batch_size=4")] == [12, 12]
    close(curve(tmp_path / "run"), whole)
    made_with = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (made_with["ranks"], made_with["global_batch"]) == (2, 16)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000000018")
    assert [begun for begun, _, _ in ranks(2, fit, config, "data.batch_size=4")] == [16, 16]
    close(curve(tmp_path / "run"), whole)
    errors = ranks(3, resume_error, config, "data.batch_size=4", "schedule.epochs=9")
    assert all("3 x data.batch_size=4 does not divide it" in error for error in errors)


def started_again(config):
    """A finished run whose results only the main rank sees yet."""
    BACKBONES["plain"] = Plain
    trainer = Trainer(load_config(config), World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))
    if dist.get_rank():
        trainer._is_finished = lambda: False
    return trainer.step, trainer.fit()


def test_the_main_rank_says_whether_a_run_is_finished(ranks, config):
    ranks(2, fit, config)
    assert ranks(2, started_again, config) == [(9, {})] * 2
