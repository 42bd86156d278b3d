"""The benchmark of ``pipelines.prepare`` from its command to its files, on few images."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("mxnet") is None, reason="an extra, whose writer is raced")
def test_measures_every_way(tmp_path):
    arguments = ["--images", "48", "--threads", "1", "--rounds", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.prepare", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (rows,) = [json.loads(path.read_text())["rows"] for path in tmp_path.glob("prepare_*.json")]
    ways = {}
    for row in rows:
        ways.setdefault(row["name"].partition(":")[0], []).append(row)
    assert {name: len(found) for name, found in ways.items()} == {
        "check": 2,
        "resize 250 px to 112": 2,
        "encode as quality 90": 2,
        "folder to RecordIO": 3,
    }
    assert all(found[0]["of_yardstick"] == found[0]["cpu_of_yardstick"] == 1 for found in ways.values())
    assert all(row["images_per_second"] > 0 and row["cpu_microseconds"] > 0 for row in rows)
    assert list(tmp_path.glob("prepare_*.png"))
