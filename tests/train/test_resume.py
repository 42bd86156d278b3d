"""What a run that goes on with another config tells of it."""

import json

import pytest
import torch

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.alike import check_alike
from train.config import Config, apply_override
from train.resume import batches_a_step, config_changes


def dumped(*overrides):
    """A config as a checkpoint holds it."""
    tree = {"data": {"train": "faces"}, "model": {"name": "mbf"}, "output": "runs/a"}
    for override in overrides:
        apply_override(tree, override)
    return json.loads(json.dumps(Config.model_validate(tree).model_dump(mode="json")))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.augment=arcface"], ["data.augment from flip to arcface"]),
        (["model={name: r18, pool: pair_relation}"], ["model.name from mbf to r18", "model.pool from its default to"]),
        (["head.m=0.4", "head.optim.lr=0.5"], ["head.optim.lr from 1.0 to 0.5", "head.m from its default to 0.4"]),
        (["recipe={name: distill, teacher: t.onnx}"], ["recipe.name from plain to distill", "recipe.teacher from"]),
        (["optim.layer_decay=0.75"], ["optim.layer_decay from 1.0 to 0.75"]),
        (["schedule.epochs=3"], ["schedule.epochs from 20.0 to 3.0"]),
        (["precision=fp32"], ["precision from bf16 to fp32"]),
        (["output=runs/b"], []),
        ([], []),
    ],
)
def test_values_that_are_others_are_told_by_their_keys(changes, told):
    found = config_changes({"config": dumped(), "step": 8}, dumped(*changes))
    parts = found.removeprefix("the config has changed at step 8: ").split("; ") if found else []
    assert len(parts) == len(told) and all(part.startswith(words) for part, words in zip(parts, told)), found


@pytest.mark.parametrize(
    ("changes", "ranks", "batches"),
    [
        (["data.batch_size=4"], 2, 2),  # as it began
        (["data.batch_size=8"], 1, 2),
        (["data.batch_size=8"], 2, 1),  # after that again on as many as it began on
        (["data.batch_size=4", "optim.accumulate=3"], 2, 3),  # to be refused: it is meant
        (["data.batch_size=5"], 1, None),
        (["data.batch_size=32"], 1, None),
    ],
)
@pytest.mark.parametrize("noted", [True, False])
def test_the_global_batch_stays_by_what_is_accumulated(changes, ranks, batches, noted):
    meta = {"global_batch": 16, "ranks": 2, **({"config": dumped("optim.accumulate=2")} if noted else {})}
    tree = dumped("optim.accumulate=2", *changes)
    if not noted and batches == 3:
        batches = 2  # nothing tells that it was changed
    world = World(torch.device("cpu"), 0, ranks)
    if batches is None:
        with pytest.raises(UserError, match="does not divide it: change data.batch_size"):
            batches_a_step(Config.model_validate(tree), world, meta)
    else:
        assert batches_a_step(Config.model_validate(tree), world, meta) == batches


def test_ranks_that_are_not_alike_are_told_of():
    of_a_machine = dumped("data.train=/scratch/of/another/machine", "data.threads=3", "log.every_steps=7")
    check_alike([dumped(), dumped(), of_a_machine])
    for other, told in (
        (dumped("optim.lr=0.002"), "optim.lr is 0.002 on rank 1, and 0.1 on rank 0"),
        (dumped("head.m=0.4"), "head.m is 0.4 on rank 1, and None on rank 0"),
        ({**dumped(), "fingerprint": "2 f"}, "fingerprint is 2 f on rank 1"),
    ):
        with pytest.raises(UserError, match=f"{told}.*same config and the same data"):
            check_alike([dumped(), other])


def test_nothing_is_told_where_nothing_is_known():
    assert config_changes({"step": 8}, dumped()) is None
