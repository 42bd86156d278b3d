"""Learning rates by their formulas."""

import math

import pytest

from train.optim import LearningRate
from train.sections.optim import Schedule


def rates(steps_per_epoch=10, lr=0.4, **options):
    schedule = LearningRate(Schedule(**options), lr, steps_per_epoch)
    return [schedule(step) for step in range(schedule.total)]


@pytest.mark.parametrize("name", ["polynomial", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [{"warmup_epochs": 0.5}, {"warmup_steps": 5}])
def test_warm_up(name, warmup):
    values = rates(name=name, epochs=3, **warmup)
    assert len(values) == 30
    assert values[:5] == pytest.approx([0.4 * k / 6 for k in (1, 2, 3, 4, 5)])
    assert values[5] == 0.4 and min(values) > 0
    assert all(a >= b for a, b in zip(values[5:], values[6:]))


def test_shapes():
    assert rates(name="polynomial", epochs=2)[10] == pytest.approx(0.4 * 0.25)
    assert rates(name="polynomial", epochs=2, power=1)[15] == pytest.approx(0.1)
    assert rates(name="cosine", epochs=2)[5] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    step = rates(name="step", epochs=4, milestones=[1, 3], gamma=0.5)
    assert (step[9], step[10], step[29], step[30]) == (0.4, 0.2, 0.2, 0.1)


def test_a_milestone_is_at_its_step_to_the_last_bit():
    """1.1 · 10 is a little more than 11 in floating point."""
    values = rates(name="step", epochs=12, milestones=[1.1])
    assert values.index(min(values)) == 11


def test_warm_up_longer_than_the_run():
    with pytest.raises(ValueError, match="does not fit"):
        rates(epochs=1, warmup_epochs=2)
