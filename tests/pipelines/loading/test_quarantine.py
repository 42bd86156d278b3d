"""What is known of bad images is shared by all ranks of a run and outlives them."""

import fcntl
import json
import multiprocessing

import numpy as np
import pytest

from pipelines.loading import quarantine
from pipelines.loading.quarantine import Quarantine
from tests.pipelines.face_source import COUNT, FaceSource, assert_same, make, take

BAD = (3, 14, 30)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(path, limit=0.1, source=None):
    return Quarantine(source or FaceSource(), max_fraction=limit, path=path)


def test_a_restart_knows_what_was_bad_and_reads_it_no_more(tmp_path):
    path = tmp_path / "bad.jsonl"
    options = {"augment": "arcface", "max_bad_fraction": 0.1, "quarantine": path}
    source = FaceSource({3: b"", 14: b"none"}, unreadable=(30,))
    straight = take(make(source, **options), 14)
    written = path.read_bytes()
    assert sorted(line["index"] for line in lines(path)) == [3, 14, 30]
    again = FaceSource({3: b"", 14: b"none"}, unreadable=(30,))
    loader = make(again, **options)
    loader.seek(5)
    assert_same(take(loader, 9), straight[5:])
    assert path.read_bytes() == written
    assert not np.isin(np.concatenate(again.reads), BAD).any()


def test_who_found_a_bad_image_and_when_changes_no_batch(tmp_path):
    """Known before, found while others are decoded ahead, by this rank or by another."""
    source = FaceSource(dict.fromkeys(range(0, COUNT, 3), b"none"), unreadable=(1, 2, 40))
    known, found = (take(make(source, max_bad_fraction=0.5, quarantine=path), 12) for path in [tmp_path / "a"] * 2)
    alone = take(make(source, max_bad_fraction=0.5, prefetch=1), 12)
    assert_same(known, found)
    assert_same(known, alone)
    path = tmp_path / "b"
    ranks = [
        make(source, batch_size=4, rank=rank, world_size=2, max_bad_fraction=0.5, quarantine=path) for rank in (0, 1)
    ]
    for batch in known:
        shares = [next(rank) for rank in ranks]
        assert batch.indices.tolist() == sum((share.indices.tolist() for share in shares), [])
    found = [line["index"] for line in lines(path)]
    assert len(found) == len(set(found))


def test_the_count_at_a_step_is_that_of_an_uninterrupted_run(tmp_path):
    def counts(loader, steps):
        for _ in range(steps):
            next(loader)
            yield loader.replaced

    source = FaceSource({3: b"", 14: b"none"}, unreadable=(30,))
    options = {"max_bad_fraction": 0.1, "quarantine": tmp_path / "bad.jsonl"}
    straight = list(counts(make(source, **options), 9))
    assert sorted(set(straight)) == [0, 1, 2, 3] or straight[-1] == 3
    resumed = make(source, **options)
    resumed.seek(2)
    assert list(counts(resumed, 7)) == straight[2:]
    assert list(counts(make(source, max_bad_fraction=0.1), 9)) == straight  # without a file


def test_ranks_see_what_others_have_found(tmp_path):
    one, other = opened(tmp_path / "a"), opened(tmp_path / "a")
    one.add(3, "none", step=2)
    assert 3 not in other and other.found_before(9) == 1 and 3 in other
    assert (other.found_before(2), other.found_before(3)) == (0, 1)
    other.add(3, "again", step=4)
    other.add(5, "none", step=4)
    one.add(5, "none", step=7)
    assert [(line["index"], line["step"]) for line in lines(tmp_path / "a")] == [(3, 2), (5, 4)]
    assert one.found_before(5) == 2


def test_the_limit_counts_over_ranks_and_starts(tmp_path):
    ranks = [opened(tmp_path / "a", limit=0.04) for _ in range(3)]
    ranks[0].add(1, "none", 0)
    ranks[1].add(2, "none", 0)
    with pytest.raises(ValueError, match=r"3 of 50 images are bad, more than .* 0\.04 .*; the last one is .*image 3"):
        ranks[2].add(3, "none", 0)
    with pytest.raises(ValueError, match=r"3 of 50 images are bad.*a lists them: delete it once they are mended"):
        opened(tmp_path / "a", limit=0.04)


@pytest.mark.parametrize(
    "junk",
    [
        b'{"index": 7, "image": "tor',
        b"\0\0\0\0\n",
        b"\xff\xfe\n[1]\n7\nnull\n{}\n",
        b'{"index": "7"}\n{"index": 50}\n{"index": -1}\n{"index": true}\n{"index": 1.5}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_lines_that_are_none_are_passed_over(tmp_path, junk):
    path = tmp_path / "a"
    path.write_bytes(b'{"index": 4, "image": "x", "reason": "written before steps were"}\n' + junk)
    first = opened(path)
    assert len(first) == 1 and 4 in first
    first.add(9, "none", 3)
    assert json.loads(path.read_bytes().splitlines()[-1])["index"] == 9
    assert sorted(index for index in range(COUNT) if index in opened(path)) == [4, 9]


def test_a_file_that_is_deleted_is_begun_again(tmp_path):
    bad = opened(tmp_path / "a")
    bad.add(1, "none", 0)
    bad.add(2, "none", 0)
    (tmp_path / "a").unlink()
    bad.add(3, "none", 0)
    assert [line["index"] for line in lines(tmp_path / "a")] == [3] and bad.found_before(1) == 3


def add_all(path, seed):
    bad = opened(path, limit=0.99)
    for index in np.random.default_rng(seed).permutation(40).tolist():
        bad.add(index, "none", seed)


@pytest.mark.parametrize("locks", [True, False])
def test_several_processes_write_whole_lines(tmp_path, monkeypatch, locks):
    if not locks:

        def flock(*_):
            raise OSError("no locks here")

        monkeypatch.setattr(fcntl, "flock", flock)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_all, args=(tmp_path / "a", seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [line["index"] for line in lines(tmp_path / "a")]
    assert set(found) == set(range(40))
    assert len(found) == 40 or not locks


def test_a_lock_that_is_never_given_does_not_stop_it(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine, "_PAUSE", 0)
    bad = opened(tmp_path / "a")
    with (tmp_path / "a").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        bad.add(1, "none", 0)
    assert len(lines(tmp_path / "a")) == 1
