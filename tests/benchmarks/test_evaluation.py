import json
import sys

import pytest

from benchmarks import evaluation, extraction, results
from tests.evaluate.networks import write_onnx


def test_both_ways_agree_and_every_stage_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "save", lambda name, rows: results.save(name, rows, tmp_path))
    options = ["--scale", "0.01", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", *options])
    evaluation.main()
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    totals = {row["way"]: row for row in rows if row["stage"] == "1:1 in all"}
    parts = sum(
        row["seconds"]
        for row in rows
        if row.get("way") == "facemill" and row["stage"] in ("pool", "score pairs", "ROC")
    )
    assert totals["facemill"]["seconds"] == pytest.approx(parts, abs=0.01)


def test_extraction_is_measured_by_stage(tmp_path, monkeypatch):
    network = str(write_onnx(tmp_path / "net.onnx"))
    monkeypatch.setattr(evaluation, "save", lambda name, rows: results.save(name, rows, tmp_path))
    monkeypatch.setattr(extraction, "ROUNDS", 1)
    options = ["--extract", "--networks", network, "mobilefacenet", "--images", "24", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", ["", *options, "--threads", "1"])
    evaluation.main()
    (path,) = tmp_path.glob("extraction_*.json")
    light, heavy = json.loads(path.read_text())["rows"]
    for row in (light, heavy):
        assert row["images_per_second"] > 0 and row["network_alone"] > 0
        assert sum(row[f"{stage}_%"] for stage in extraction.STAGES) == pytest.approx(100, abs=0.5)
    assert (light["network"], heavy["network"]) == (network, "mobilefacenet")
    assert heavy["network_%"] > light["network_%"]


def test_own_people_are_measured_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "save", lambda name, rows: results.save(name, rows, tmp_path))
    monkeypatch.setattr(sys, "argv", ["", "--people", "400", "--threads", "1"])
    evaluation.main()
    (path,) = tmp_path.glob("own_people_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["images"], row["stage"]) for row in rows] == [(400, "1:1"), (400, "1:N")]
    assert all(row["seconds"] > 0 and row["peak_gb"] > 0 for row in rows)
