import json
import sys

import numpy as np
import pytest

from benchmarks import own_people, results


def test_own_people_are_measured_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(own_people, "save", lambda name, rows: results.save(name, rows, tmp_path))
    monkeypatch.setattr(sys, "argv", ["", "400", "--threads", "1"])
    own_people.main()
    (path,) = tmp_path.glob("own_people_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["images"], row["stage"]) for row in rows] == [(400, "1:1"), (400, "1:N")]
    assert all(row["seconds"] > 0 and row["peak_gb"] > 0 for row in rows)


def test_made_up_people_are_as_far_apart_as_is_said():
    faces = own_people.made_up(400)
    cosines, names = faces.vectors @ faces.vectors.T, np.array(faces.names)
    same = names[:, None] == names
    assert same.sum(1).tolist() == [5] * 400 and np.diag(cosines) == pytest.approx(1)
    assert cosines[same & ~np.eye(400, dtype=bool)].mean() == pytest.approx(0.5, abs=0.02)
    assert cosines[~same].mean() == pytest.approx(0, abs=0.02)


def test_nine_people_in_ten_are_enrolled_by_three_images(monkeypatch):
    seen = []
    for stage in ("own_pairs", "own_gallery"):
        monkeypatch.setattr(own_people, stage, lambda *faces: seen.append(faces))
    own_people.measure(400)
    (everyone,), (gallery, probes, unknown) = seen
    assert [len(part.paths) for part in (everyone, gallery, probes, unknown)] == [400, 216, 144, 40]
    assert len({*gallery.paths, *probes.paths, *unknown.paths}) == 400
    assert {*gallery.names} == {*probes.names} and not {*gallery.names} & {*unknown.names}
