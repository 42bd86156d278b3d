"""The table of timm's models: documents have what was measured, and it still holds."""

import json
from pathlib import Path

import pytest

from benchmarks.results import RESULTS
from benchmarks.timm_models import MODELS, costs, exports, table

pytest.importorskip("timm")

(FILE,) = RESULTS.glob("timm_models_*.json")
ROWS = json.loads(FILE.read_text())["rows"]
METHODS = Path(__file__).resolve().parents[2] / "docs/methods.md"


def test_the_documents_have_the_rows():
    assert tuple(row["model"] for row in ROWS) == MODELS
    assert table(ROWS) in METHODS.read_text()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row["model"], marks=[] if "conv_small" in row["model"] else pytest.mark.slow)
        for row in ROWS
    ],
)
def test_the_costs_hold(row):
    assert costs(row["model"]) == pytest.approx({key: value for key, value in row.items() if key != "onnx"})


def test_what_does_not_export_says_why(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no such\n operator")

    monkeypatch.setattr("benchmarks.timm_models.export_onnx", refuse)
    assert exports("test_vit", "own", 32) == "no such operator"
