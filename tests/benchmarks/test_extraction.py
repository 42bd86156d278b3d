import json
import sys

import pytest

from benchmarks import extraction, results
from tests.evaluate.networks import write_onnx


def test_extraction_is_measured_by_stage(tmp_path, monkeypatch):
    network = str(write_onnx(tmp_path / "net.onnx"))
    monkeypatch.setattr(extraction, "save", lambda name, rows: results.save(name, rows, tmp_path))
    monkeypatch.setattr(extraction, "ROUNDS", 1)
    options = ["--networks", network, "mobilefacenet", "--images", "24", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", ["", *options, "--threads", "1"])
    extraction.main()
    (path,) = tmp_path.glob("extraction_*.json")
    light, heavy = json.loads(path.read_text())["rows"]
    for row in (light, heavy):
        assert row["images_per_second"] > 0 and row["network_alone"] > 0
        assert sum(row[f"{stage}_%"] for stage in extraction.STAGES) == pytest.approx(100, abs=0.5)
    assert (light["network"], heavy["network"]) == (network, "mobilefacenet")
    assert heavy["network_%"] > light["network_%"]
