"""The throughput benchmark from its command to its files, on a small data set and few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.synthetic.dataset import make_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_measures_every_way(tmp_path):
    make_dataset(tmp_path / "data", identities=20, images_per_identity=8, held_out=20, processes=1)
    arguments = ["--data", tmp_path / "data", "--batch", "16", "--cores", "1", "--rounds", "1", "--output", tmp_path]
    overrides = ["data.batch_size=16", "data.threads=1"]
    command = [sys.executable, ROOT / "benchmarks/throughput.py", *arguments, *overrides]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (data,) = [json.loads(path.read_text()) for path in tmp_path.glob("data_*.json")]
    assert len(data["rows"]) >= 5 and all(row["images_per_second"] > 0 for row in data["rows"])
    assert data["rows"][0]["of_decoding_alone"] == 1
    (step,) = [json.loads(path.read_text()) for path in tmp_path.glob("step_*.json")]
    fed, fixed = step["rows"]
    assert 0 <= fed["data_wait"] < 1 and fed["images_per_second"] > 0 and fixed["images_per_second"] > 0
    assert list(tmp_path.glob("data_*.png"))
