"""Which device a process takes; that an error on one rank does not wait for the others."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from evaluate.features import ranks as module
from evaluate.features.ranks import find_device, ranks
from pipelines.common import drivers
from pipelines.common.errors import UserError


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(devices=..., seen=..., driver=..., smi=..., cuda=..., **environment)``: a machine to be found.

    ``devices`` are those that PyTorch can use, ``seen`` those that it is told of.
    """

    def make(devices=0, seen=None, driver=None, node=False, smi="", cuda="13.0", **environment):
        for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices if seen is None else seen)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        for place, name, content in ((drivers, "LOADED", driver), (module, "_DEVICE", "" if node else None)):
            monkeypatch.setattr(place, name, tmp_path / name)
            if content is not None:
                (tmp_path / name).write_text(content)

        def run(command, **_):
            if smi is None:
                raise FileNotFoundError(command[0])
            return SimpleNamespace(stdout=smi)

        monkeypatch.setattr(subprocess, "run", run)

    return make


@pytest.mark.parametrize("smi", ["", None, "No devices found.\n"])
def test_a_machine_without_a_gpu(machine, smi):
    machine(smi=smi)
    assert find_device() == find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="no GPU is visible, and PyTorch finds no CUDA device"):
        find_device("cuda")


NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\nGCC version: gcc 12.2.0\n"


@pytest.mark.parametrize(
    ("signs", "message"),
    [
        ({"driver": NVRM.format("550.54.15")}, r"LOADED\).* built for CUDA 13.0, the driver is 550.54.15; install"),
        ({"driver": NVRM.format("550.54.15"), "cuda": None}, "is built without CUDA, install a build with it"),
        ({"driver": "garbage"}, "the driver is unknown; install a newer driver, or a torch built for an older CUDA"),
        ({"node": True}, "_DEVICE"),
        ({"seen": 8}, "this machine has a GPU .its driver tells"),
        ({"smi": "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\n"}, "nvidia-smi lists one"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_no_silent_cpu(machine, signs, message):
    machine(**signs)
    with pytest.raises(UserError, match=message) as caught:
        find_device()
    assert "device: cpu" in str(caught.value)
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("value", ["", "-1"])
def test_the_cpu_on_purpose(machine, value):
    machine(driver="", CUDA_VISIBLE_DEVICES=value)
    assert find_device() == torch.device("cpu")
    with pytest.raises(UserError):
        find_device("cuda")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_local_rank_has_a_device(machine, wanted):
    machine(devices=8, LOCAL_RANK="5", LOCAL_WORLD_SIZE="8", TORCHELASTIC_RUN_ID="x")
    assert find_device(wanted) == torch.device("cuda", 5)
    machine(devices=1)
    assert find_device(wanted) == torch.device("cuda", 0)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_process_is_shown_its_own_device(machine, wanted):
    """As SLURM does with --gpus-per-task=1; torchrun shows all processes all devices."""
    machine(devices=1, LOCAL_RANK="5", LOCAL_WORLD_SIZE="8")
    assert find_device(wanted) == torch.device("cuda", 0)
    machine(devices=1, LOCAL_RANK="5", LOCAL_WORLD_SIZE="8", TORCHELASTIC_RUN_ID="x")
    with pytest.raises(UserError, match="8 processes on this machine, which has 1 CUDA devices"):
        find_device(wanted)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_device_too_few(machine, wanted):
    machine(devices=7, LOCAL_RANK="0", LOCAL_WORLD_SIZE="8")
    with pytest.raises(UserError, match="8 processes on this machine, which has 7 CUDA devices"):
        find_device(wanted)


def in_ranks(monkeypatch, calls):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: calls.append(options["timeout"]))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))


def test_the_group_ends_with_the_context(monkeypatch):
    calls = []
    in_ranks(monkeypatch, calls)
    with ranks() as world:
        assert world.size == 2 and calls[0].total_seconds() == 3600
    assert calls[1:] == ["destroyed"]


def test_an_error_does_not_wait_for_the_other_ranks(monkeypatch):
    calls = []
    in_ranks(monkeypatch, calls)
    with pytest.raises(UserError), ranks():
        raise UserError("of this rank alone")
    assert "destroyed" not in calls


def test_there_is_a_section_on_drivers():
    assert "## Drivers" in (Path(__file__).parents[3] / "docs/install.md").read_text()
