"""Networks beside what is published: figures, differences, and what is not done again."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import against
from benchmarks.against import compare, main, measure, page, printed, protocols, verdict
from benchmarks.face_ijb import write_faces
from evaluate.reporting.schema import Results
from models import create_model

ROOT = Path(__file__).resolve().parents[2]
CURVES = {"roc": {"far": [0.1], "tar": [1.0]}, "histogram": {"edges": [0, 1], "genuine": [1], "impostor": [1]}}
ONE = {"threshold": {"0.0001": 0.3}, "genuine": 9, "impostor": 9, "hardest": {}, **CURVES}


def results():
    tar = {"tar": {"0.0001": 0.96, "0.1": None}, "interval": {"0.0001": [0.95, 0.97]}}
    part = {"accuracy": 0.99, "std": 0.01, "threshold": 1.5, **CURVES}
    return [
        Results(name="a", target="IJBC", verification={**ONE, **tar}),
        Results(name="a", sets={"LFW": part, "mine": part}),
    ]


ROWS = [
    {"method": "M", "network": "r50", "data": "D", "source": "https://s", "IJBC": {"0.0001": 0.965}},
    {
        "method": "N",
        "network": "r50",
        "data": "D",
        "source": "https://s",
        "IJBC": {"0.0001": 0.975},
        "bins": {"lfw": 0.98},
    },
]


def test_each_figure_stands_beside_each_row_that_has_it():
    table = compare("a", results(), ROWS, ["", "optim.lr"])
    assert [(row["figure"], row.get("row")) for row in table] == [
        ("IJBC TAR at FAR 1e-4", "M · r50 · D"),
        ("IJBC TAR at FAR 1e-4", "N · r50 · D"),
        ("LFW accuracy", "N · r50 · D"),
        ("mine accuracy", None),
    ]
    assert [row.get("over") for row in table] == [pytest.approx(x) if x else None for x in (-0.005, -0.015, 0.01, None)]
    assert table[0]["over_interval"] == pytest.approx((-0.015, 0.005))
    assert [verdict(row) for row in table] == ["within noise", "missed", "", ""]
    assert printed(table[1])["over it"] == "-1.50 [-2.50, -0.50]" and "published %" not in printed(table[3])
    shown = page(table, {"a": "stands beside <M>"})
    assert "&lt;M&gt;" in shown and shown.count('<tr class="ours">') == 4 and "within noise</td>" in shown


def test_what_is_done_is_kept_until_the_weights_are_others(tmp_path, monkeypatch):
    called = []

    def command(output, *line):
        called.append(line)
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text("{}")

    monkeypatch.setattr(against, "command", command)
    weights = tmp_path / "a.onnx"
    weights.write_text("1")
    options = argparse.Namespace(
        runs=tmp_path / "runs", threads=1, bins=[Path("lfw.bin")], ijbc=Path("c"), ijbb=None, tinyface=None
    )
    what = protocols(options)
    assert list(what) == ["IJBC", "bins"]
    measure(weights, "a", what, options)
    measure(weights, "a", what, options)
    assert len(called) == 2
    weights.touch()
    options.bins = []
    measure(weights, "a", protocols(options), options)
    assert len(called) == 3 and called[2][1] == "evaluate.ijb"


@pytest.mark.parametrize(
    "arguments, told",
    [
        ((), "required: CHECKPOINT"),
        (("a.onnx",), "there are no data to measure with"),
        (("a.onnx", "--bins", "l.bin", "--reproduces", "-", "-"), "says something of 2 networks, 1 are given"),
    ],
)
def test_what_is_missing_is_told(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(sys, "argv", ["benchmarks.against", *arguments])
    with pytest.raises((ValueError, SystemExit)) as raised:
        main()
    assert told in str(raised.value) + capsys.readouterr().err


@pytest.mark.slow
def test_from_photographs_to_the_table(tmp_path):
    generator = np.random.default_rng(0)
    for identity in range(6):
        (tmp_path / "faces" / str(identity)).mkdir(parents=True)
        for image in range(6):
            pixels = generator.integers(0, 256, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / str(identity) / f"{image}.png")
    write_faces(tmp_path, tmp_path / "faces")
    torch.save(create_model("mbf").state_dict(), tmp_path / "net.pt")
    line = [sys.executable, "-m", "benchmarks.against", tmp_path / "net.pt", "--ijbc", tmp_path]
    line += ["--reproduces", "arcface_torch mobilefacenet glint360k", "--runs", tmp_path / "r", "--output", tmp_path]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("against_*.json")
    rows = {row["figure"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["IJBC TAR at FAR 1e-4"]["published"] == 0.9504 and len(rows) == 6
    assert "mobilefacenet · Glint360K" in path.with_suffix(".html").read_text()
    assert (tmp_path / "r/report/index.html").exists()
