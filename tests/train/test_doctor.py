"""What the doctor says of machines."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from pipelines.common import drivers
from pipelines.common.errors import UserError
from tests.command import called
from train import doctor


def ill(facts):
    return {fact.name: fact.remedy for fact in facts if not fact.sound}


def test_a_driver_that_is_too_old_for_one_of_the_builds():
    found = list(doctor._driver_facts("550.54.15", {"PyTorch": 13, "DALI": 12}))
    assert (
        "too old for PyTorch" in ill(found)["NVIDIA driver"] and "PyTorch needs 580, DALI needs 525" in found[0].value
    )
    assert not ill(doctor._driver_facts("580.82.07", {"PyTorch": 13, "DALI": 12}))
    assert not ill(doctor._driver_facts(None, {"PyTorch": 13, "DALI": 12}))
    assert not ill(doctor._driver_facts("580.82.07", {"PyTorch": None, "DALI": None}))


@pytest.mark.parametrize(
    ("builds", "number", "says"),
    [
        ({"nvidia-dali-cuda120": 12}, "2.1.1", None),
        ({"nvidia-dali-cuda130": 13}, "2.4.0", "pip install 'nvidia-dali-cuda130~=2.1.0'"),
        ({"nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}, "2.1.1", "pip uninstall"),
        ({}, "", "pip install"),
    ],
)
def test_builds_of_dali(monkeypatch, builds, number, says):
    monkeypatch.setattr(drivers, "dali_builds", lambda: builds)
    monkeypatch.setattr(doctor, "version", lambda name: number)
    fact = doctor._dali()
    assert fact.sound if says is None else says in fact.remedy


def test_a_gpu_that_cannot_be_used_is_refused_with_the_remedy(monkeypatch):
    def refuse():
        raise UserError("this machine has a GPU, and PyTorch finds no CUDA device: install a newer driver")

    monkeypatch.setattr(doctor, "find_device", refuse)
    assert "newer driver" in ill(doctor.choice())["device: auto"]


def test_gpus_that_dali_does_not_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = type("Properties", (), dict(name="NVIDIA Test", total_memory=80 * 2**30, major=9, minor=0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(drivers, "installed_driver", lambda: "580.82.07")
    monkeypatch.setattr(doctor, "_gpus_of_dali", lambda: 0)
    found = list(doctor.graphics())
    assert "NVIDIA Test, 80 GiB, compute capability 9.0" in [fact.value for fact in found]
    assert list(ill(found)) == ["GPUs that DALI sees"]


def test_extras_that_are_missing_come_with_their_remedy(monkeypatch, tmp_path):
    listed = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = listed.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    names = [f"extra {name}" for name in re.findall(r"^(\w+) = ", section, re.MULTILINE)]
    assert {fact.name for fact in doctor.extras()} == {*names} - {"extra docs", "extra test"}
    (tmp_path / "wandb_of_runs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    modules = {"onnx": (("json", "no_such_module"), "ONNX"), "wandb": (("wandb_of_runs",), "a"), "x": (("json",), "b")}
    monkeypatch.setattr(doctor, "_EXTRAS", modules)
    facts = list(doctor.extras())
    assert not ill(facts)  # one can do without
    assert [fact.value for fact in facts] == [
        "without no_such_module: pip install 'facemill[onnx]' (ONNX)",
        "without wandb_of_runs: pip install 'facemill[wandb]' (a)",
        "installed (b)",
    ]
    assert [fact.lacking for fact in facts] == [True, True, False]


def test_a_timm_that_cannot_be_imported_is_lacking(monkeypatch):
    def library():
        raise UserError("timm cannot be imported: install the torchvision that was built for torch")

    monkeypatch.setattr(doctor, "_EXTRAS", {"timm": (("json",), "backbones")})
    monkeypatch.setattr(doctor.timm_backbone, "library", library)
    (fact,) = doctor.extras()
    assert fact.lacking and "install the torchvision" in fact.value


def test_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", "--json"])
    found = [doctor.Fact("one", "is"), doctor.Fact("two", "is not", "mend it"), doctor.Fact("three", "", lacking=True)]
    monkeypatch.setattr(doctor, "facts", lambda: found)
    with pytest.raises(SystemExit, match="1"):
        doctor.main()
    printed, told = capsys.readouterr()
    facts = [
        {"name": "one", "value": "is", "remedy": "", "lacking": False},
        {"name": "two", "value": "is not", "remedy": "mend it", "lacking": False},
        {"name": "three", "value": "", "remedy": "", "lacking": True},
    ]
    assert json.loads(printed) == {"sound": False, "facts": facts} and "→ mend it" in told
    assert [line[0] for line in told.splitlines() if line[0] != " "] == ["✓", "✗", "–"]


def test_the_command():
    ran = called(doctor.main)
    assert "✓ Python" in ran.out and "device: auto" in ran.out
    assert ran.code == (1 if "✗" in ran.out else 0)
