"""A command's progress where nobody watches a terminal: lines that a log keeps."""

import sys
from contextlib import redirect_stdout

import pytest

from pipelines.common import progress
from pipelines.common.progress import with_progress


@pytest.fixture
def clock(monkeypatch):
    """Batches that take 25 seconds each."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def batches(count, size):
        for number in range(count):
            now[0] += 25
            yield [number] * size

    return batches


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(clock, capsys):
    assert sum(map(len, with_progress(clock(6, 1000), "embedding", 6000))) == 6000
    assert capsys.readouterr().out.splitlines() == [
        "embedding: 3,000 of 6,000, 0:01:15 left",
        "embedding: 6,000 of 6,000, 0:00:00 left",
        "embedding: 6,000 of 6,000 in 0:02:30",
    ]


def test_who_takes_no_more_than_needed_sees_all_of_it_counted(clock, capsys):
    batches = with_progress(clock(6, 10), "embedding", 60)
    for _ in range(6):
        next(batches)
    batches.close()
    assert capsys.readouterr().out.splitlines()[-1] == "embedding: 60 of 60 in 0:02:30"


def test_what_fails_tells_how_far_it_came(clock, capsys):
    def failing():
        yield from clock(1, 10)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(with_progress(failing(), "embedding", 20))
    assert capsys.readouterr().out == "embedding: 10 of 20 in 0:00:25\n"


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    list(with_progress(clock(2, 10), "[embedding] {a}\x1b[2J", 20))
    out = capsys.readouterr().out
    assert "[embedding] {a}\\x1b[2J" in out and "20/20" in out and "in 0:" not in out


def test_a_terminal_without_a_cursor_gets_lines(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    list(with_progress(clock(3, 10), "embedding", 30))
    assert capsys.readouterr().out.startswith("embedding: 30 of 30, 0:00:00 left")


def test_the_last_line_goes_where_the_others_went(clock, capsys):
    """Also where an error of who takes the batches ends them later."""
    with redirect_stdout(sys.stderr):
        batches = with_progress(clock(2, 10), "embedding", 20)
        next(batches)
    batches.close()
    assert capsys.readouterr() == ("", "embedding: 10 of 20 in 0:00:25\n")
