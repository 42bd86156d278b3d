"""What is printed and written of given outcomes."""

import json

import pytest

from benchmarks.gpu.conduct import Outcome
from benchmarks.gpu.summary import finish
from tests.benchmarks.gpu.rows import check, compiled, outcomes


def failing():
    return outcomes(head=[check("loss", 0.5, passed=False, limit="<= 0.01")])


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (outcomes(head=[check("loss", 0.5)]), False),
        (failing(), True),
        ([Outcome("head", "failed", [], said="exit code 1\nValueError: why")], True),
        ([Outcome("head", "out of time", [], said="ended at its limit of 3 s")], True),
        ([Outcome("head", "cut", [], said="ended at its limit of 3 s")], False),
        ([Outcome("head", "skipped", [], said="no time")], False),
    ],
)
def test_verdict(tmp_path, capsys, found, failed):
    found += outcomes(compile=compiled(r50=1.3))
    assert finish(found, tmp_path) == failed
    printed = capsys.readouterr().out
    assert ("FAIL" in printed) == failed and "model: {compile: true}" in printed
    assert ("ValueError: why" in printed) == ("ValueError" in found[0].said)
    (path,) = tmp_path.glob("gpu_*.json")
    written = json.loads(path.read_text())
    assert written["passed"] != failed and written["defaults"] == ["model: {compile: true}"]
    assert written["parts"][0]["state"] == found[0].state and path.with_suffix(".html").exists()


def test_nothing_that_ran_is_no_success(tmp_path, capsys):
    late = Outcome("head", "skipped", [], said="no time")
    assert finish([late], tmp_path)
    assert "FAIL without head, for lack of time" in " ".join(capsys.readouterr().out.split())
    assert not finish([late, *outcomes(compile=compiled(r50=1.3))], tmp_path)
    assert "PASS without head, for lack of time" in " ".join(capsys.readouterr().out.split())
