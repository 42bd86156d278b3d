"""Training and benchmarks start as modules and as scripts, and leave ``sys.path`` alone where they are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.throughput
import train.run
from tests.command import called

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["train.run", *(f"benchmarks.{name}" for name in ("accuracy", "head", "models", "recipes", "throughput"))]


def python(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_imported_they_change_no_path():
    code = f"import sys; before = list(sys.path); import {', '.join(MODULES)}; assert sys.path == before, sys.path"
    result = python(ROOT, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", [train.run, benchmarks.throughput], ids=lambda module: module.__name__)
def test_a_script_and_a_module_alike(tmp_path, monkeypatch, module):
    """A script from any folder, which its own folder's modules (``benchmarks/head.py`` for one) do not confuse."""
    monkeypatch.setenv("COLUMNS", "80")
    result = python(tmp_path, module.__file__, "--help")
    assert result.returncode == 0, result.stderr
    script, imported = (text.partition("\n\n")[2] for text in (result.stdout, called(module.main, "--help").out))
    assert script == imported != ""
