"""Sets of images that come more or less often: counted over whole epochs."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.loading import schedule as schedule_module
from pipelines.loading.schedule import SHUFFLES, Schedule
from tests.pipelines.face_source import COUNT, FaceSource, assert_same, make, take
from tests.pipelines.loading.test_schedule import SURELY_UNIFORM, epoch_order

SHARES = [(700, 0.3), (1, 2.5), (90, 2.0), (300, 1.75)]


def schedule(shares=SHARES, batch_size=1, **options) -> Schedule:
    return Schedule(sum(size for size, _ in shares), batch_size, **{"seed": 5, **options}, shares=shares)


def whole_epoch(epoch, shares=SHARES, **options) -> np.ndarray:
    """The images of an epoch in their order: one batch."""
    size = schedule(shares, **options).steps_per_epoch
    return schedule(shares, size, **options).slice(epoch, 0)[0]


@settings(deadline=None, max_examples=60)
@given(
    shares=st.lists(st.tuples(st.integers(1, 120), st.floats(0.001, 4)), min_size=1, max_size=4),
    epoch=st.integers(0, 2**40),
    shuffle=st.sampled_from(SHUFFLES),
    batch_size=st.integers(1, 9),
)
def test_an_epoch_shows_each_image_as_often_as_its_set_says(shares, epoch, shuffle, batch_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_module, "_BLOCK", 8)
        patch.setattr(schedule_module, "_WINDOW", 64)
        order = whole_epoch(epoch, shares, shuffle=shuffle)
        batches = epoch_order(schedule(shares, min(batch_size, len(order)), shuffle=shuffle), epoch)
    assert np.array_equal(batches, order[: len(batches)]) and len(order) - len(batches) < batch_size
    seen = np.bincount(order, minlength=sum(size for size, _ in shares))
    for (size, weight), counts in zip(shares, np.split(seen, np.cumsum([size for size, _ in shares])[:-1])):
        wanted = max(1, round(Fraction(weight) * size))  # exact but for what float multiplication rounds
        assert abs(counts.sum() - wanted) <= 1
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_every_image_of_a_set_comes_equally_often_in_the_mean(shuffle):
    epochs = 400
    orders = [whole_epoch(epoch, shuffle=shuffle) for epoch in range(epochs)]
    seen = np.bincount(np.concatenate(orders), minlength=1091)
    assert seen[700] == 2 * epochs and (seen[701:791] == 2 * epochs).all()
    for first, last, weight in ((0, 700, 0.3), (791, 1091, 1.75)):
        counts = seen[first:last]
        assert counts.sum() == round(weight * (last - first)) * epochs
        if shuffle == "global":
            assert stats.chisquare(counts).pvalue > SURELY_UNIFORM
        assert abs(counts / epochs - weight).max() < 0.15  # runs from a random start: seven standard deviations


def test_sets_do_not_draw_alike():
    """Two sets of one size, of each of which a half comes: they are other halves, and others in the next epoch."""
    halves = [
        np.sort(part) % 1000
        for epoch in (0, 1)
        for order in [whole_epoch(epoch, [(1000, 0.5)] * 2)]
        for part in (order[order < 1000], order[order >= 1000])
    ]
    assert all(len(half) == 500 for half in halves)
    for first in range(4):
        for second in range(first):
            assert 180 < len(np.intersect1d(halves[first], halves[second])) < 320  # 250 ± 8 by chance


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_ranks_share_the_batch_of_one_and_no_step_depends_on_those_before(shuffle):
    whole = schedule(batch_size=64, shuffle=shuffle, num_uniforms=3)
    for epoch, step in [(0, 0), (3, 7), (2, whole.steps_per_epoch - 1)]:
        fresh = schedule(batch_size=64, shuffle=shuffle, num_uniforms=3)
        shares = [fresh.slice(epoch, step, rank, 4) for rank in range(4)]
        for ours, theirs in zip(map(np.concatenate, zip(*shares)), whole.slice(epoch, step)):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_one_set_of_weight_one_is_in_the_order_of_none(weight):
    plain = epoch_order(Schedule(500, 1, seed=2), 4)
    assert np.array_equal(plain, epoch_order(schedule([(500, weight)], seed=2), 4)) == (weight == 1)


def test_blocks_are_read_in_runs_and_the_disk_is_told_of_them():
    shares = [(40_000, 0.25), (30_000, 2.0)]
    blocks = schedule(shares, batch_size=1000, shuffle="block")
    for step in range(blocks.steps_per_epoch):
        assert (np.diff(np.sort(blocks.upcoming(1, step))) > 1).sum() < 8
    told = np.concatenate([blocks.upcoming(1, step) for step in range(blocks.steps_per_epoch)])
    assert np.array_equal(np.sort(told), np.sort(epoch_order(blocks, 1)))


def test_batches_of_the_loader_on_any_number_of_ranks():
    options = {"shares": [(20, 0.5), (COUNT - 20, 2.0)], "batch_size": 14}
    whole = take(make(**options), 6)
    assert make(**options).steps_per_epoch == 70 // 14
    halves = [take(make(**{**options, "batch_size": 7}, rank=rank, world_size=2), 6) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves):
        assert np.array_equal(batch.indices, np.concatenate([first.indices, second.indices]))
    resumed = make(**options)
    resumed.seek(4)
    assert_same(take(resumed, 2), whole[4:])


def test_images_that_are_bad_have_substitutes():
    """Also where all that a part of a set has in an epoch is bad."""
    loader = make(FaceSource(unreadable=tuple(range(40))), shares=[(COUNT, 0.2)], batch_size=2, max_bad_fraction=0.9)
    assert all((batch.indices >= 40).all() for batch in take(loader, 12))
