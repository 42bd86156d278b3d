import json
import sys

import pytest

from benchmarks import evaluation, results


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
