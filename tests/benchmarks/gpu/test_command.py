"""The acceptance run by its command, on the processor: what it prints, writes and returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS

ROOT = Path(__file__).resolve().parents[3]


def start(folder, *arguments, launcher=("-m", "benchmarks.gpu"), seconds=300):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "--output", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=seconds)


def result(folder):
    (path,) = folder.glob("gpu_*.json")
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def sound(found, parts):
    assert [part["part"] for part in found["parts"]] == parts
    assert all(part["state"] in ("done", "skipped", "cut") for part in found["parts"]), found["parts"]
    for row in found["rows"]:
        assert row["part"] in PARTS and row["name"]
        fields = {"check": {"value", "limit", "passed", "unit"}, "figure": {"value", "unit"}, "skipped": {"reason"}}
        assert fields[row["kind"]] <= row.keys()
    assert found["machine"]["processor"] and "driver" in found["versions"]


def test_some_parts(tmp_path):
    ran = start(tmp_path, "--parts", "environment", "first_contact", "pixels")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = result(tmp_path)
    sound(found, ["material", "environment", "first_contact", "pixels"])
    assert found["passed"] and found["command"].startswith("python -m benchmarks.gpu --output")
    assert "PASS" in ran.stdout and "FAIL" not in ran.stdout and "no GPU" in ran.stdout
    assert len(list(tmp_path.glob("gpu_*.html"))) == 1


def test_no_time_no_parts(tmp_path):
    ran = start(tmp_path, "--minutes", "0.1", "--parts", "head")
    assert ran.returncode == 0 and "no time" in ran.stdout, ran.stdout + ran.stderr
    assert result(tmp_path)["parts"][0]["state"] == "skipped"


def test_help_is_quick():
    code = "import sys, benchmarks.gpu.__main__; assert not {'torch', 'matplotlib', 'nvidia'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    shown = subprocess.run([sys.executable, "benchmarks/gpu", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and all(name in shown.stdout for name in ("--minutes", "collectives", "torchrun"))


def test_under_torchrun(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "benchmarks.gpu")
    ran = start(tmp_path, "--parts", "collectives", launcher=launcher)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = result(tmp_path)
    sound(found, ["collectives"])
    assert next(row["value"] for row in found["rows"] if row["name"] == "ranks") == 2


@pytest.mark.slow
def test_everything(tmp_path):
    ran = start(tmp_path, "--minutes", "20", seconds=1300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    sound(result(tmp_path), list(PARTS))
