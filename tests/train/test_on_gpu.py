"""What a run does on a GPU; the same functions run here on the CPU, so that only the device is left to a machine with
one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

from evaluate.features.ranks import World, take_device
from tests.command import called
from tests.train.support import curve, finish_in_processes
from tests.train.test_verification import accuracies, write_pairs
from train.config import load_config
from train.run import main
from train.trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PRECISIONS = {"cpu": "fp32", "cuda": "bf16"}  # bf16 is slow where the processor has none
MBF = ["model={name: mbf, width: 0.125, embedding_size: 16, input_size: 32}"]
R18 = ["model={name: r18, width: 0.125, embedding_size: 16, input_size: 32}"]
TRANSFACE = ["model={name: transface_t, embedding_size: 16, input_size: 36}", "recipe.name=transface"]
RECIPES = {
    "plain": R18,
    "sampled": [*R18, "head.sample_rate=0.5", "optim.accumulate=2", "data.batch_size=4", "optim.ema=0.9"],
    "adamw": [*R18, "optim.name=adamw", "optim.lr=0.001"],
    "drawn margins": [*R18, "head={margin: elasticface, s: 16}"],
    "transface": TRANSFACE,
    "topofr": [*R18, "recipe.name=topofr", "data.augment=rsp"],
    "contraface": [*R18, "recipe.name=contraface"],
}
STEPS = 20


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Where the host would wait for the device's work, an error. An event that it waits for is none: see HostCopy."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def losses(config, overrides, device, count):
    """The losses of the first steps; after the first of them the host waits for none."""
    trainer = Trainer(load_config(config, overrides), World(take_device(device), dist.get_rank(), 1))
    with torch.no_grad():  # as on every device: its own generator drew others
        trainer.learner.head.weight.copy_(torch.randn_like(trainer.learner.head.weight.cpu()) / 100)
    loader = iter(trainer.loader)
    batches = iter([next(loader) for _ in range(count * trainer.accumulate)])
    sums = []
    for step in range(count):
        trainer.meter.window.zero_()
        if step:
            with no_waiting(trainer.world.device):
                trainer.train_step(batches)
        else:  # memory is found, convolutions are timed
            trainer.train_step(batches)
        sums.append(trainer.meter.window.clone())
    trainer.loader.close()
    trainer.folder.release()
    return [float(total / number) for total, number in sums]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RECIPES)
def test_steps_of_every_recipe(ranks, config, name, device):
    overrides = [*RECIPES[name], "precision=bf16", "schedule.epochs=9"]
    (found,) = ranks(1, losses, str(config), overrides, device, 2 if device == "cpu" else 6)
    assert all(0 < loss < 100 for loss in found) and len(set(found)) == len(found)


@pytest.mark.gpu
def test_compiled_steps(ranks, config, tmp_path):
    """By inductor and Triton, of a network without randomness; on a CPU that is in `test_compile`."""
    settings = [*R18, "precision=fp32", "schedule.epochs=9"]
    found = {}
    for compile in ("true", "false"):
        overrides = [*settings, f"model.compile={compile}", f"output={tmp_path}/{compile}"]
        (found[compile],) = ranks(1, losses, str(config), overrides, "cuda", 6)
    assert found["true"] == pytest.approx(found["false"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("network", [MBF, ["model.name=plain", "optim.name=adamw", "optim.lr=0.001"]])
def test_float32_is_that_of_the_cpu(ranks, config, tmp_path, network):
    """Products and convolutions round their operands to nothing less."""
    here, there = (
        ranks(1, plain_losses, str(config), [*network, "schedule.epochs=9", f"output={tmp_path}/{number}"], where)[0]
        for number, where in enumerate(("cuda", "cpu"))
    )
    assert len(here) == STEPS and here == pytest.approx(there, rel=1e-3)
    assert max(here) - min(here) > 0.1 * here[0], "the losses move by more than they may differ"


def plain_losses(config, overrides, device):
    from models.registry import BACKBONES
    from tests.train.plain_run import Plain

    BACKBONES["plain"] = Plain
    return losses(config, overrides, device, STEPS)


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_run_and_its_second_half(config, tmp_path, device):
    """Two epochs with verification; resumed from the middle it ends where it ended."""
    sets = write_pairs(tmp_path / "sets" / "lfw.bin", 30)
    run = [*MBF, f"device={device}", f"precision={PRECISIONS[device]}", "schedule.epochs=2", "optim.ema=0.9"]
    run += ["checkpoint.every_steps=6", f"verify.bins=[{sets}]", "verify.every_steps=6", "verify.batch_size=16"]

    def finish(output):
        if device == "cpu":
            ended = called(main, "--config", config, f"output={output}", *run)
            assert ended.code == 0, ended.error
        else:
            finish_in_processes(config, f"output={output}", *run)

    finish(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "model.pt").unlink()
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_000000012")
    finish(tmp_path / "parts")
    whole, parts = (dict(curve(tmp_path / name)) for name in ("whole", "parts"))
    assert list(whole) == list(parts) == list(range(1, 13))
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-3 if device == "cuda" else 0)
    (_, before), (step, last) = accuracies(tmp_path / "whole")
    assert step == 12 and 0 < last["verify/lfw"] <= 1 and before.keys() == last.keys()
