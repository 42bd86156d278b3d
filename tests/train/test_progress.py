"""What a run prints and keeps."""

import json

import pytest
from rich.table import Table

from tests.train.support import curves
from train.progress import SINKS, JsonLines, RunLog


def test_names_print_as_they_are(tmp_path, capsys):
    name = "a [bold] :smile: b"
    log = RunLog(tmp_path, 10, 0, sinks=["jsonl"])
    log.say(f"verified {name}: 50%")
    log.step({"step": 1, "loss": 1.0}, f"step {name}")
    table = Table("set", name)
    table.add_row(name, "1")
    log.say(table)
    log.close()
    assert capsys.readouterr().out.count(name) == 4
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 1.0}


def test_what_a_terminal_would_obey_prints_as_python_writes_it(tmp_path, capsys):
    log = RunLog(tmp_path, 10, 0, sinks=[])
    log.say("wrote runs/a\x1b[2J\nb")
    log.close()
    assert capsys.readouterr().out == "wrote runs/a\\x1b[2J\\nb\n"


def test_a_terminal_without_a_cursor_gets_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    monkeypatch.setenv("TERM", "dumb")
    log = RunLog(tmp_path, 10, 0, sinks=[])
    log.step({"step": 1}, "step 1")
    assert "step 1" in capsys.readouterr().out
    log.close()


def test_only_whole_lines_up_to_the_step_are_kept(tmp_path):
    """A disk that was full, or a kill, leaves anything behind."""
    good = [{"step": 1, "loss": 1.0}, {"step": 2, "verify_seconds": 1.0}, {"step": 4, "loss": 0.5}]
    again = [{"step": 4, "verify_seconds": 1.0}, {"step": 5, "loss": 0.4}]
    damaged = [b"3", b"null", b'{"step": "4", "loss": 1}', b'{"loss": 1}', b"\xff\x00", b'{"step": 4, "lo']
    lines = [*(json.dumps(record).encode() for record in good + again), *damaged]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    checkpoint = tmp_path / "checkpoints" / "step_000000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").touch()
    JsonLines(tmp_path).close()
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == good


class Failing:
    """A sink that fails where it is told to."""

    def __init__(self, where):
        self.where, self.closed = where, False

    def log(self, record):
        assert self.where != "log"

    def close(self):
        self.closed = True
        assert self.where != "close"


def test_one_sink_that_fails_leaves_the_others_whole(tmp_path, monkeypatch):
    sinks = []

    def make(where):
        sinks.append(Failing(where))
        return sinks[-1]

    monkeypatch.setitem(SINKS, "good", lambda folder: make(""))
    monkeypatch.setitem(SINKS, "bad", lambda folder: make("close"))
    log = RunLog(tmp_path, 10, 0, sinks=["good", "bad", "good"])
    log.step({"step": 1}, "")
    with pytest.raises(AssertionError):
        log.close()
    assert [sink.closed for sink in sinks] == [True, True, True]

    sinks.clear()
    monkeypatch.setitem(SINKS, "none", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        RunLog(tmp_path, 10, 0, sinks=["good", "none"])
    assert sinks[0].closed


def test_curves_of_floats(tmp_path):
    board = SINKS["tensorboard"](tmp_path)
    board.log({"step": 3, "loss": 0.5, "replaced_images": 2})
    board.close()
    assert curves(tmp_path) == {"loss": [(3, 0.5)]}
