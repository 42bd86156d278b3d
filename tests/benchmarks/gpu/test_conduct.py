"""The parts as processes: one that fails, hangs or dies is told and stops nothing; the time is shared out."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks.gpu import conduct
from benchmarks.gpu.part import Report, Setting, read_rows
from benchmarks.gpu.parts import PARTS, Part

# Does what the part is called, in the place of the worker: arguments are the part, its setting and the file for rows.
WORKER = """
import json, os, signal, subprocess, sys, time
part, setting, rows = sys.argv[1:]
with open(rows, "a") as file:
    passed = part != "wrong"
    print(json.dumps(dict(kind="check", name="a check", value=1, unit="", limit="", passed=passed)), file=file)
    print('{"kind": "fig', end="", file=file)
print("rank", os.environ.get("RANK"))
if part == "fails":
    raise ValueError("this is why")
if part == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if part == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def setting(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(conduct, "launcher", lambda part, setting: [sys.executable, str(script)])
    monkeypatch.setattr(conduct, "_GRACE", 0.2)
    monkeypatch.setattr(conduct, "_END", 0.0)
    return Setting("cpu", tmp_path / "data", tmp_path / "scratch", 0.0, 1, small=True)


def run(setting, names, seconds=60.0, **parts):
    told = []
    chosen = {name: parts.get(name, Part("", 10)) for name in names}
    outcomes = conduct.conduct(chosen, setting, time.time() + seconds, lambda *_: None, told.append)
    assert told == outcomes and [outcome.part for outcome in outcomes] == names
    return {outcome.part: outcome for outcome in outcomes}


def test_what_fails_stops_nothing(setting):
    found = run(setting, ["fails", "dies", "wrong", "fine"])
    assert [outcome.state for outcome in found.values()] == ["failed", "failed", "done", "done"]
    assert "exit code 1" in found["fails"].said and "ValueError: this is why" in found["fails"].said
    assert "killed by SIGKILL" in found["dies"].said
    assert [len(outcome.failures) for outcome in found.values()] == [1, 1, 1, 0]
    assert all(len(outcome.rows) == 1 for outcome in found.values())  # the half of a row is none


def test_what_hangs_is_ended_with_all_that_it_started(setting):
    limits = dict(hangs=Part("", 1), cut=Part("", 1, cut=True), fine=Part("", 20))
    found = run(setting, ["hangs", "fine"], seconds=25.2, **limits)
    assert found["hangs"].state == "out of time" and found["hangs"].seconds < 10 and found["hangs"].failures
    assert found["fine"].state == "done"
    child = int(found["hangs"].said.split("child ")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.05)
    cut = run(setting, ["hangs"], seconds=1.2, hangs=Part("", 1, cut=True))["hangs"]
    assert cut.state == "cut" and not cut.failures and len(cut.rows) == 1


def test_parts_without_time_are_skipped_and_the_end_is_kept(setting):
    began = time.time()
    found = run(setting, ["hangs", "late"], seconds=1.5, late=Part("", 0.01))
    assert time.time() - began < 10
    assert found["hangs"].state == "out of time" and found["late"].state == "skipped"
    assert found["late"].said == "no time" and not found["late"].failures


def test_time_that_is_left_over_goes_to_those_that_follow(setting, monkeypatch):
    limits = []
    monkeypatch.setattr(
        conduct,
        "run_part",
        lambda name, part, setting, limit, tell: limits.append(limit) or conduct.Outcome(name, "done", []),
    )
    run(setting, ["a", "b", "c"], seconds=100, a=Part("", 50), b=Part("", 30), c=Part("", 20))
    assert limits == pytest.approx([50, 60, 100], rel=0.01)


def test_ranks_are_for_the_parts_that_are_of_them(setting, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    alone, together = (conduct.environment(Part("", 1, everywhere=everywhere)) for everywhere in (False, True))
    assert not alone.keys() & {"RANK", "TORCHELASTIC_RUN_ID"} and together["RANK"] == "1"
    assert str(conduct.ROOT) in alone["PYTHONPATH"].split(os.pathsep)


def test_chosen_parts():
    assert list(conduct.chosen(PARTS, [], several=False)) == list(PARTS) and list(PARTS)[-1] == "compile"
    assert list(conduct.chosen(PARTS, [], several=True)) == ["material", "environment", "collectives", "failure"]
    assert list(conduct.chosen(PARTS, ["head"], several=False)) == ["head"]
    assert list(conduct.chosen(PARTS, ["step"], several=False)) == ["material", "step"]
    assert not conduct.chosen(PARTS, ["step"], several=True)


def test_a_setting_survives_the_command_line(setting):
    assert Setting.from_json(setting.to_json()) == setting
    assert replace(setting, ends=time.time() + 5).seconds == pytest.approx(5, abs=1)


def test_limits(tmp_path):
    report = Report(tmp_path / "rows")
    nan = float("nan")
    passed = [report.at_most("", 1, 1), report.at_most("", 1.1, 1), report.at_most("", nan, 1)]
    passed += [report.at_least("", 1, 1), report.at_least("", 0.9, 1), report.at_least("", nan, 1)]
    assert passed == [True, False, False] * 2
    rows = read_rows(tmp_path / "rows")
    assert [row["passed"] for row in rows] == passed and rows[2]["value"] == "nan" and rows[0]["limit"] == "<= 1"
    Report(None).figure("nobody's", 1)


def test_the_end_of_a_process_is_not_waited_for_forever():
    ignores = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", ignores], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    conduct.end(process, grace=0.2)
    assert process.returncode == -signal.SIGKILL


def test_what_interrupts_the_waiting_for_an_end_leaves_no_process(monkeypatch):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    wait = process.wait

    def interrupted(timeout=None):
        if timeout is None:
            return wait()
        raise SystemExit(143)

    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(SystemExit):
        conduct.end(process, 5)
    assert process.poll() == -signal.SIGKILL
