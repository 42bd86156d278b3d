import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.loading import schedule as schedule_module
from pipelines.loading.permutation import ROUNDS, permute
from pipelines.loading.schedule import SHUFFLES, Schedule

SURELY_UNIFORM = 1e-4  # the seeds are fixed, so a test that passes once always does


def epoch_order(schedule: Schedule, epoch: int, world_size: int = 1) -> np.ndarray:
    return np.concatenate(
        [
            schedule.slice(epoch, step, rank, world_size)[0]
            for step in range(schedule.steps_per_epoch)
            for rank in range(world_size)
        ]
    )


def chi_square(counts: np.ndarray) -> float:
    return stats.chisquare(counts).pvalue


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, seed):
    keys = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**64, ROUNDS, np.uint64)
    assert np.array_equal(np.sort(permute(np.arange(size), size, keys)), np.arange(size))


def test_permute_reaches_all_permutations_of_few():
    generator = np.random.Generator(np.random.PCG64(0))
    keys = generator.integers(0, 2**64, (6000, ROUNDS), np.uint64)
    orders, counts = np.unique([permute(np.arange(4), 4, k) for k in keys], axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.max() < 2 * counts.min()


def test_permute_in_a_large_domain():
    size = 2**63 - 25
    indices = np.array([0, 1, size // 2, size - 2, size - 1])
    permuted = permute(indices, size, np.arange(ROUNDS, dtype=np.uint64))
    assert len(set(permuted)) == 5
    assert (permuted >= 0).all()
    assert (permuted < size).all()


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 700),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 2**40),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.sampled_from(SHUFFLES),
)
def test_an_epoch_shows_every_sample_once(size, batch_size, epoch, seed, shuffle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_module, "_BLOCK", 8)
        patch.setattr(schedule_module, "_WINDOW", 64)
        schedule = Schedule(size, min(size, batch_size), seed=seed, shuffle=shuffle)
        order = epoch_order(schedule, epoch)
        assert len(order) == size // schedule.batch_size * schedule.batch_size
        assert len(np.unique(order)) == len(order)
        assert order.min() >= 0
        assert order.max() < size
        whole = epoch_order(Schedule(size, 1, seed=seed, shuffle=shuffle), epoch)
        assert np.array_equal(np.sort(whole), np.arange(size))
        assert np.array_equal(order, whole[: len(order)])  # the batch size only cuts the order


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch_of_one(shuffle, world_size):
    schedule = Schedule(100_003, 64, seed=5, shuffle=shuffle, num_uniforms=11)
    for epoch, step in [(0, 0), (3, 17), (7, schedule.steps_per_epoch - 1)]:
        indices, uniforms = schedule.slice(epoch, step)
        shares = [schedule.slice(epoch, step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate([share[0] for share in shares]), indices)
        assert np.array_equal(np.concatenate([share[1] for share in shares]), uniforms)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_step_does_not_depend_on_those_before(shuffle):
    visited = Schedule(5000, 32, seed=1, shuffle=shuffle, num_uniforms=3)
    for step in range(100):
        visited.slice(2, step)
    for ours, fresh in zip(
        visited.slice(2, 100), Schedule(5000, 32, seed=1, shuffle=shuffle, num_uniforms=3).slice(2, 100), strict=True
    ):
        assert np.array_equal(ours, fresh)


def test_epochs_and_seeds_differ():
    orders = [epoch_order(Schedule(1000, 10, seed=seed), epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for first in range(9):
        for second in range(first):
            agreeing = (orders[first] == orders[second]).sum()
            assert agreeing < 10  # one is expected of independent permutations


def test_the_dropped_rest_differs_from_epoch_to_epoch():
    for shuffle in ("global", "block"):
        schedule = Schedule(10_300, 1000, seed=0, shuffle=shuffle)
        rests = [set(range(10_300)) - set(epoch_order(schedule, epoch).tolist()) for epoch in range(3)]
        assert all(len(rest) == 300 for rest in rests)
        assert len(rests[0] & rests[1]) < 100


@pytest.mark.parametrize("size", [7, 64, 1000, 1021])
def test_each_position_gets_each_sample_equally_often(size):
    schedule = Schedule(size, size, seed=4)
    orders = np.stack([schedule.slice(epoch, 0)[0] for epoch in range(3000)])
    cells = min(size, 50)
    for position in (0, size // 2, size - 1):
        counts = np.bincount(orders[:, position] * cells // size, minlength=cells)
        expected = np.bincount(np.arange(size) * cells // size, minlength=cells) * 3000 / size
        assert stats.chisquare(counts, expected).pvalue > SURELY_UNIFORM


def test_neighbours_are_independent():
    size = 1_000_003
    order = permute(np.arange(size), size, np.random.default_rng(0).integers(0, 2**64, ROUNDS, np.uint64))
    assert chi_square(np.bincount((order[1:] - order[:-1]) % size * 200 // size)) > SURELY_UNIFORM
    pairs = (order[:-1] * 30 // size) * 30 + order[1:] * 30 // size
    assert chi_square(np.bincount(pairs, minlength=900)) > SURELY_UNIFORM
    for lag in (1, 2, 1000, 1001):  # 1001 columns has the grid
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.005
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.005
    fixed_points = (order == np.arange(size)).sum()
    assert fixed_points < 10


def test_batches_of_a_sorted_file_mix_identities():
    identities = np.arange(60_000) // 50
    indices, _ = Schedule(60_000, 128, seed=0).slice(0, 0)
    assert len(np.unique(identities[indices])) > 110  # 122 are expected


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in plain Python, from the paper."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            second >> 64 ^ counter[1] ^ key[0],
            second & mask,
            first >> 64 ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [key[0] + 0x9E3779B97F4A7C15 & mask, key[1] + 0xBB67AE8584CAA73B & mask]
    return counter


def test_philox_reference_has_the_published_answer():
    answer = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([0, 0, 0, 0], [0, 0]) == answer


def test_uniforms_are_those_of_philox():
    seed, epoch, step, rank = 2**64 - 3, 9, 21, 1
    schedule = Schedule(1000, 8, seed=seed, num_uniforms=13)
    _, uniforms = schedule.slice(epoch, step, rank, 2)
    assert uniforms.dtype == np.float32
    for row in range(4):
        position = step * 8 + rank * 4 + row
        for column in range(13):
            # numpy counts up before it draws, hence the 1
            words = philox([position + 1, column // 8, 0, 3], [seed, epoch])
            word = words[column % 8 // 2] >> 32 * (column % 2) & 0xFFFFFFFF
            assert uniforms[row, column] == (word >> 8) / 2**24


def test_uniforms_do_not_depend_on_how_many_there_are():
    wide = Schedule(1000, 100, seed=3, num_uniforms=30).slice(1, 4)[1]
    for count in (0, 1, 8, 9, 16):
        assert np.array_equal(Schedule(1000, 100, seed=3, num_uniforms=count).slice(1, 4)[1], wide[:, :count])


def test_uniforms_are_uniform_and_independent():
    schedule = Schedule(200_000, 20_000, seed=8, num_uniforms=10)
    uniforms = np.concatenate([schedule.slice(epoch, step)[1] for epoch in range(2) for step in range(5)])
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    for column in uniforms.T:
        assert stats.kstest(column, "uniform").pvalue > SURELY_UNIFORM
    rows = np.concatenate([uniforms[:-1], uniforms[1:]], axis=1)  # with the next sample's
    correlation = np.corrcoef(rows.T) - np.eye(20)
    assert np.abs(correlation).max() < 0.015


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(schedule_module, "_BLOCK", 16)
    monkeypatch.setattr(schedule_module, "_WINDOW", 256)


def test_block_mode_reads_few_places_at_a_time(small_blocks):
    size = 100_000
    schedule = Schedule(size, 64, seed=2, shuffle="block")
    assert schedule.lead == 4
    for window in (0, 7, 100):
        steps = range(window * 4, window * 4 + 4)
        shown = np.concatenate([schedule.slice(3, step)[0] for step in steps])
        told = np.concatenate([schedule.upcoming(3, step) for step in steps])
        assert np.array_equal(np.sort(shown), np.sort(told))
        assert (np.diff(told) == 1).mean() > 0.9  # in runs of consecutive records ...
        assert (np.diff(shown) == 1).mean() < 0.1  # ... whose samples are then mixed
        assert stats.spearmanr(np.arange(256), shown).pvalue > SURELY_UNIFORM
    starts = np.concatenate([schedule.upcoming(3, step)[::16] for step in range(schedule.steps_per_epoch)])
    assert chi_square(np.bincount((np.diff(starts) % size) * 20 // size, minlength=20)) > SURELY_UNIFORM


def test_the_short_block_holds_other_records_every_epoch(small_blocks):
    schedule = Schedule(16 * 10 + 7, 1, seed=0, shuffle="block")
    short = [[int(schedule.upcoming(epoch, 160 + place)[0]) for place in range(7)] for epoch in range(8)]
    assert len({min(records) for records in short}) > 4


def test_upcoming_is_what_a_step_shows():
    schedule = Schedule(5000, 32, seed=1)
    assert np.array_equal(schedule.upcoming(1, 7, 1, 2), schedule.slice(1, 7, 1, 2)[0])


def test_substitutes_are_spread_over_all_samples():
    schedule = Schedule(40, 8, seed=0)
    drawn = [schedule.substitute(5, position, attempt) for position in range(200) for attempt in range(10)]
    assert chi_square(np.bincount(drawn, minlength=40)) > SURELY_UNIFORM
    assert schedule.substitute(5, 199, 9) == drawn[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5, "batch_size": 8}, "does not fit"),
        ({"size": 5, "batch_size": 0}, "does not fit"),
        ({"size": 5, "batch_size": 1, "shuffle": "globl"}, "global, block, none"),
        ({"size": 5, "batch_size": 1, "seed": -1}, "seed"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"seed": 0, **arguments})


def test_a_batch_that_ranks_cannot_share():
    with pytest.raises(ValueError, match="cannot be shared by 3 ranks"):
        Schedule(100, 8, seed=0).slice(0, 0, 0, 3)
