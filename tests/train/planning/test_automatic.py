"""What ``auto`` becomes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from pydantic import ValidationError

from pipelines.common.cpu import multiplies_bf16
from pipelines.common.errors import UserError
from tests.train.planning.support import config
from train.distributed import joined, own_cores
from train.planning.automatic import advice, settle, settled_values
from train.planning.decoding import batches_ahead, decoding_threads
from train.planning.step import USABLE, Setting, chosen_tile, trace_step
from train.trainer import train

GIB = 2**30
EVERYTHING = {"threads": "auto", "prefetch": "auto"}


def setting(memory=80 * GIB, gpu=True):
    return Setting(gpu=gpu, memory=memory, ranks=2, identities=10_000)


def automatic(name="vit_t"):
    return config({"name": name, "checkpoint_activations": "auto"}, data=EVERYTHING, precision="auto")


def test_every_auto_gets_a_value():
    given = automatic()
    settled = settle(given, setting(), cores=4)
    assert list(settled_values(given, settled)) == [
        "precision=bf16",
        f"head.tile={chosen_tile(given, setting())}",
        "model.checkpoint_activations=false",
        "data.prefetch=16",
        "data.threads=3",
    ]
    assert settle(settled, setting(), cores=64) == settled
    assert not list(settled_values(settled, settled))


@pytest.mark.parametrize(
    ("flags", "found"),
    [("fpu avx512f avx2", False), ("fpu avx512_bf16", True), ("amx_bf16 fpu", True), ("avx512_bf16_not", False)],
)
def test_a_processor_says_whether_it_multiplies_bf16(monkeypatch, flags, found):
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: amx_bf16\n")
    assert multiplies_bf16() == found


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_fastest_precision_is_that_of_the_slowest_rank(precision):
    given, here = config({"name": "vit_t"}, precision="auto"), replace(setting(), precision=precision)
    assert settle(given, here, 4).precision == precision
    assert settle(given, here, 4, lambda so: True).precision == "fp32"  # another rank's has no half precision


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize(
    ("device", "capability", "other"), [("cpu", None, "fp32"), ("cuda", (7, 5), "fp16"), ("cuda", (6, 1), "fp32")]
)
def test_who_emulates_bf16_is_told_of(monkeypatch, device, capability, other, able):
    monkeypatch.setattr("train.planning.automatic.multiplies_bf16", lambda: able)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation or able)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    given = config({"name": "vit_t"}, precision="bf16")
    told = advice(given, torch.device(device))
    assert told is None if able else f"precision={other}" in told
    assert advice(config({"name": "vit_t"}), torch.device(device)) is None


def test_what_is_said_stays():
    said = config({"name": "r18"}, {"tile": 999}, {"threads": 7, "prefetch": 5})
    assert settle(said, setting(), cores=2) == said


def test_activations_are_computed_again_where_they_do_not_fit():
    needed = trace_step(settle(automatic(), setting(), 4), setting()).memory.total / USABLE
    assert settle(automatic(), setting(round(1.01 * needed)), 4).model.checkpoint_activations is False
    assert settle(automatic(), setting(round(0.99 * needed)), 4).model.checkpoint_activations is True


def test_one_rank_that_lacks_the_memory_decides_for_all():
    votes = []

    def any_rank(needed):
        votes.append(needed)
        return True

    assert settle(automatic(), setting(), 4, any_rank).model.checkpoint_activations is True
    assert votes == [False, False, False]  # on float32 and fp16 in the place of bf16, and on memory


def test_a_backbone_without_the_option_keeps_its_activations(monkeypatch):
    from models.registry import BACKBONES
    from tests.train.planning.support import Perceptron

    monkeypatch.setitem(BACKBONES, "perceptron", Perceptron)
    assert settle(automatic("perceptron"), setting(GIB), 4).model.checkpoint_activations is False
    with pytest.raises((UserError, ValidationError), match="has no option checkpoint_activations"):
        config({"name": "perceptron", "checkpoint_activations": True})


@pytest.mark.parametrize(("cores", "gpu", "threads"), [(1, True, 1), (4, True, 3), (64, True, 8), (2, False, 2)])
def test_threads(cores, gpu, threads):
    assert decoding_threads("auto", cores, gpu) == threads
    assert decoding_threads(5, cores, gpu) == 5


@pytest.mark.parametrize(("batch", "ahead"), [(1, 16), (128, 4), (384, 3), (2048, 3)])
def test_batches_ahead(batch, ahead):
    assert batches_ahead("auto", batch) == ahead
    assert batches_ahead(2, batch) == 2


def test_a_run_says_what_it_settled_and_keeps_it(tmp_path, faces, capsys):
    given = config(
        {"name": "mbf", "width": 0.125, "input_size": 32, "checkpoint_activations": "auto"},
        data={"train": str(faces), "batch_size": 16, **EVERYTHING},
        schedule={"epochs": 1},
        output=str(tmp_path / "run"),
    )
    with joined("cpu", 60) as world:
        train(given, world)
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    cores = len(os.sched_getaffinity(0))
    assert stored["data"]["threads"] == min(8, cores) and stored["data"]["prefetch"] == 16
    assert stored["model"]["checkpoint_activations"] is False and stored["head"]["tile"] == 2**16
    line = f"auto: head.tile=65536, model.checkpoint_activations=false, data.prefetch=16, data.threads={min(8, cores)}"
    assert line in capsys.readouterr().out


def cores_of(sockets):
    """Of this rank, bound to some cores of the machine that there might be."""
    bound = sockets[dist.get_rank()]
    before, os.sched_getaffinity = os.sched_getaffinity, lambda process: bound
    try:
        return own_cores()
    finally:
        os.sched_getaffinity = before


def test_cores_are_shared_by_the_ranks_that_have_the_same(ranks):
    everywhere, left, right = set(range(16)), set(range(6)), set(range(6, 16))
    assert ranks(4, cores_of, [everywhere] * 4) == [4] * 4
    assert ranks(4, cores_of, [left, right, left, right]) == [3, 5, 3, 5]
    assert ranks(2, cores_of, [{0}, {0}]) == [1, 1]
