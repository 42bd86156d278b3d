"""Whole runs by the command a user types: equal on one rank and two, clear about mistakes."""

import shutil
import subprocess
import sys

import pytest
import torch

from models.registry import BACKBONES
from tests.command import called
from tests.train.conftest import write_config
from tests.train.plain_run import Plain
from tests.train.support import close, curve, finish_in_processes, learnt
from train.run import main


@pytest.fixture(scope="module")
def alone(tmp_path_factory, faces, finish):
    """The losses of the run on one rank, by step."""
    folder = tmp_path_factory.mktemp("alone")
    finish(write_config(folder, faces))
    return curve(folder / "run")


def test_two_ranks_are_one(config, tmp_path, alone):
    """By the command that users type."""
    finish_in_processes(config, "data.batch_size=8", ranks=2)
    assert len(alone) == 18
    close(curve(tmp_path / "run"), alone)


def test_two_ranks_that_sample_are_one(config, finish, tmp_path):
    finish(config, f"output={tmp_path}/one", "head.sample_rate=0.5")
    finish(config, f"output={tmp_path}/two", "data.batch_size=8", "head.sample_rate=0.5", ranks=2)
    assert len(curve(tmp_path / "one")) == 18
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))


@pytest.mark.parametrize(
    "overrides",
    [["data.batch_size=4", "optim.accumulate=4"], ["head.fused=false", "head.mode=dense"]],
    ids=["accumulated", "dense"],
)
def test_other_ways_to_one_step(config, finish, tmp_path, alone, overrides):
    finish(config, *overrides)
    close(curve(tmp_path / "run"), alone)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows(config, finish, tmp_path, precision):
    """fp16 skips its first steps, until the loss scale fits, and learns from there."""
    finish(config, f"output={tmp_path}/one", "schedule.epochs=1")
    finish(config, f"output={tmp_path}/half", "schedule.epochs=1", f"precision={precision}")
    ours, theirs = ([loss for _, loss in curve(tmp_path / name)] for name in ("half", "one"))
    same = len(ours) if precision == "bf16" else 1
    assert max(abs(a - b) / b for a, b in zip(ours[:same], theirs)) < 0.02
    assert ours[-1] < max(ours)


def test_resumes_on_another_number_of_ranks(config, finish, tmp_path, alone):
    finish(config, f"output={tmp_path}/moved", "checkpoint.every_steps=8")
    for path in (tmp_path / "moved" / "checkpoints").iterdir():
        if path.name != "step_000000008":
            shutil.rmtree(path)
    finish(config, f"output={tmp_path}/moved", "data.batch_size=8", ranks=2)
    close(curve(tmp_path / "moved"), alone)


def test_fine_tunes_an_earlier_run(config, finish, tmp_path, faces):
    """Six identities first; then all eight, from those weights and centres, on another number of ranks."""
    for identity in sorted(faces.iterdir())[:6]:
        shutil.copytree(identity, tmp_path / "fewer" / identity.name)
    finish(config, f"output={tmp_path}/old", f"data.train={tmp_path}/fewer")
    old = learnt(tmp_path / "old")
    start = [f"model.init_from={tmp_path}/old", f"head.init_from={tmp_path}/old", "optim.weight_decay=0"]

    finish(config, f"output={tmp_path}/new", *start, "optim.lr=1e-8", "data.batch_size=8", ranks=2)
    new = learnt(tmp_path / "new")
    assert len(new["centres"]) == 8
    assert all(torch.allclose(new[name][:6] if name == "centres" else new[name], old[name], atol=1e-5) for name in old)

    finish(config, f"output={tmp_path}/slow", *start, "optim.backbone_lr=1e-7")
    slow = learnt(tmp_path / "slow")
    assert all(torch.allclose(slow[name], old[name], atol=1e-5) for name in old if name != "centres")
    assert not torch.allclose(slow["centres"][:6], old["centres"], atol=1e-2)

    with pytest.raises(AssertionError, match="8 classes, more than the 6"):
        finish(config, *start, f"head.init_from={tmp_path}/new", f"data.train={tmp_path}/fewer")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.train=/nowhere"], "/nowhere"),
        (["model.name=r51"], "r51"),
        (["head.margin=arcfase"], "arcfase"),
        (["head.m2=1"], "m2"),
        (["head.num_classes=3"], "head.num_classes is 3"),
        (["data.batch_size=1000"], "1000"),
        (["optim.lrate=1"], "did you mean"),
        (["verify.bins=[lfw]"], "lfw.bin"),
        (["data.augment=flop"], "flop"),
        (["recipe.name=plane"], "plane"),
        (["model.init_from=/nowhere"], "/nowhere"),
        (["head.init_from=/nowhere"], "/nowhere"),
        (["head.kernels=triton"], "GPU"),
    ],
)
def test_mistakes_end_in_one_line(config, monkeypatch, overrides, words):
    monkeypatch.setitem(BACKBONES, "plain", Plain)
    ended = called(main, "--config", config, *overrides)
    assert ended.code == 2
    lines = [line for line in ended.error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]


def test_a_mistake_is_told_before_the_slow_imports():
    """The loop and torch's distributed parts take more than a second, for which --help and a plan need not wait."""
    slow = "train.trainer", "torch.distributed.tensor", "torch.distributed.checkpoint", "scipy"
    code = f"import sys, train.run, train.plan; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
