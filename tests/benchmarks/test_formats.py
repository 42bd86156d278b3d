"""The benchmark of formats: what it writes is what it is to read, and its rows."""

import json
import sys

import numpy as np
import pytest

from benchmarks.formats import PARQUET, RECORDIO, main, write_all
from pipelines.common.command import run
from pipelines.sources import open_source
from pipelines.synthetic.dataset import make_dataset
from tests.pipelines.face_source import ENCODED, FaceSource

pytest.importorskip("lmdb")
pytest.importorskip("msgpack")
pytest.importorskip("pyarrow")


def test_every_format_holds_the_same(tmp_path):
    source = FaceSource()
    files = write_all(source, tmp_path)
    assert next(iter(files)) == RECORDIO and len(files) == 7
    whole = np.arange(len(source))
    wanted = sorted(zip(ENCODED, source.labels(whole).tolist()))
    for name, path in files.items():
        written = open_source(path)
        images, labels = written.read(whole)
        assert sorted(zip([image.tobytes() for image in images], labels.tolist())) == wanted, name
    assert PARQUET in files


@pytest.mark.slow
def test_every_format_has_a_row(tmp_path, monkeypatch):
    make_dataset(tmp_path / "data", identities=20, images_per_identity=8, held_out=20, processes=1)
    arguments = ["--data", tmp_path / "data", "--batch", 16, "--cores", 1, "--rounds", 2, "--seconds", 0.1]
    monkeypatch.setattr(sys, "argv", ["benchmarks.formats", *map(str, arguments), "--output", str(tmp_path)])
    run(main)
    (found,) = [json.loads(path.read_text()) for path in tmp_path.glob("formats_*.json")]
    assert len(found["rows"]) == 7 and found["rows"][0]["of_recordio"] == 1
    assert all(row["images_per_second"] > 0 and row["reading_cpu_us"] > 0 for row in found["rows"])
