"""When a run saves by the clock."""

from train import timetable
from train.config import load_config
from train.timetable import Timetable


def test_a_checkpoint_that_is_due_is_asked_for_once(config, monkeypatch):
    """A vote is counted a step later: who asked again at that step would have two, a step apart."""
    now = [0.0]
    monkeypatch.setattr(timetable.time, "monotonic", lambda: now[0])
    times = Timetable(load_config(config, ["checkpoint.every_minutes=1", "model.name=mbf"]), 1000, 10)
    asked, saved = [], []
    for step in range(1, 30):
        now[0] = 7.0 * step
        if asked[-1:] == [step - 1]:
            times.saved()
            saved.append(step)
        if times.asks_to_save(step):
            asked.append(step)
    assert asked == [9, 19, 29] and saved == [10, 20]


def test_one_that_comes_by_its_number_is_not_asked_for(config, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timetable.time, "monotonic", lambda: now[0])
    every = ["checkpoint.every_minutes=1", "checkpoint.every_steps=9"]
    times = Timetable(load_config(config, [*every, "model.name=mbf"]), 1000, 10)
    for step in range(1, 30):
        now[0] = 7.0 * step
        assert not times.asks_to_save(step)
        if times.saves(step):
            times.saved()
