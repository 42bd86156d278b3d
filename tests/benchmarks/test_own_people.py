import json
import sys

from benchmarks import own_people, results


def test_own_people_are_measured_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(own_people, "save", lambda name, rows: results.save(name, rows, tmp_path))
    monkeypatch.setattr(sys, "argv", ["", "400", "--threads", "1"])
    own_people.main()
    (path,) = tmp_path.glob("own_people_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["images"], row["stage"]) for row in rows] == [(400, "1:1"), (400, "1:N")]
    assert all(row["seconds"] > 0 and row["peak_gb"] > 0 for row in rows)
