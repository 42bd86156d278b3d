"""Training and benchmarks start as modules and as scripts, and leave ``sys.path`` alone where they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["train.run", *(f"benchmarks.{name}" for name in ("accuracy", "head", "models", "recipes", "throughput"))]


def python(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_imported_they_change_no_path():
    code = f"import sys; before = list(sys.path); import {', '.join(MODULES)}; assert sys.path == before, sys.path"
    result = python(ROOT, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["train.run", "benchmarks.throughput"])
def test_a_script_and_a_module_alike(tmp_path, module):
    """A script from any folder, which its own folder's modules (``benchmarks/head.py`` for one) do not confuse."""
    script = ROOT / module.replace(".", "/")
    usages = []
    for result in (python(ROOT, "-m", module, "--help"), python(tmp_path, f"{script}.py", "--help")):
        assert result.returncode == 0, result.stderr
        usages.append(result.stdout.partition("\n\n")[2])
    assert usages[0] == usages[1] != ""
