"""The synthetic data set: complete or absent, the same for any number of processes, folds apart by identity."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.common.new_folder import new_folder
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin
from pipelines.synthetic import dataset, faces

SMALL = {"identities": 3, "images_per_identity": 4, "held_out": 20, "seed": 11}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "below" / "small"
    assert dataset.make_dataset(folder, **SMALL, processes=2)
    return folder


def test_it_trains_on_the_first_identities_and_verifies_the_others(small):
    source = open_source(small)
    images, labels = source.read(np.arange(len(source)))
    assert source.num_classes == 3
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = [faces.encode(11, identity, image) for identity in range(3) for image in range(4)]
    assert [bytes(image) for image in images] == expected
    pairs = read_bin(small / "heldout.bin")
    held_out = {faces.encode(11, identity, image) for identity in range(3, 23) for image in range(6)}
    assert set(pairs.encoded) == held_out


def test_any_number_of_processes_writes_the_same_bytes(small, tmp_path):
    (tmp_path / ".alone.partial").mkdir()  # what a killed process left
    (tmp_path / ".alone.partial" / "leftover").touch()
    dataset.make_dataset(tmp_path / "alone", **SMALL, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]
    assert {path.name for path in (tmp_path / "alone").iterdir()} == set(dataset.FILES)
    for name in dataset.FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (small / name).read_bytes(), name


def test_a_bar_ends_with_the_set_that_fails(tmp_path, monkeypatch):
    """While its caller still holds the error, and may show another bar."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich

    def full(folder, people, image_size):
        next(iter(people))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset, "write_dataset", full)
    threads = threading.active_count()
    with pytest.raises(OSError, match="No space") as raised:
        dataset.make_dataset(tmp_path / "set", **SMALL, processes=1)
    assert raised and threading.active_count() == threads


def test_a_complete_set_is_left_alone(small):
    before = {path: path.stat().st_mtime_ns for path in small.iterdir()}
    assert not dataset.make_dataset(small, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in small.iterdir()} == before
    with pytest.raises(ValueError, match="made with .*'seed': 11"):
        dataset.make_dataset(small, **SMALL | {"seed": 12})


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "train.rec").write_text("mine")
    with pytest.raises(ValueError, match="incomplete"):
        dataset.make_dataset(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="incomplete"):
        dataset.make_dataset(tmp_path / "train.rec", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["train.rec"]
    assert (tmp_path / "train.rec").read_text() == "mine"


def test_a_link_and_a_set_that_another_process_writes_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "write_dataset", lambda *args, **options: pytest.fail("it began"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match="link is a link"):
        dataset.make_dataset(tmp_path / "link", **SMALL, processes=1)
    with new_folder(tmp_path / "set") as partial:
        (partial / "train.rec").touch()
        with pytest.raises(UserError, match="set is being written by another process"):
            dataset.make_dataset(tmp_path / "set", **SMALL, processes=1)
        assert (partial / "train.rec").exists()


def test_a_link_to_a_complete_set_is_left_alone(small, tmp_path):
    (tmp_path / "link").symlink_to(small)
    assert not dataset.make_dataset(tmp_path / "link", **SMALL)


def test_settings_that_cannot_be_read(tmp_path):
    for name in dataset.FILES:
        (tmp_path / name).write_bytes(b"\xff{")
    with pytest.raises(UserError, match="made with settings that cannot be read; remove it"):
        dataset.make_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize("change", [{"identities": 1}, {"images_per_identity": 0}, {"held_out": 10}, {"held_out": 25}])
def test_counts_that_make_no_set_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match="|".join(map(str, change.values()))):
        dataset.make_dataset(tmp_path / "set", **SMALL | change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("count, images", [(20, 6), (30, 6), (50, 2), (300, 6)])
def test_pairs_make_ten_folds_apart_by_identity(count, images):
    people = [[b"%d %d" % (person, image) for image in range(images)] for person in range(count)]
    encoded, same = dataset.pair(people)
    pairs = np.array([each.split() for each in encoded], int).reshape(-1, 2, 2)  # pair, side, (person, image)
    assert len(pairs) == len(same) == count * images
    assert np.array_equal(pairs[:, 0, 0] == pairs[:, 1, 0], same)
    assert same.dtype == bool
    folds = pairs[:, :, 0].reshape(10, -1)  # as a reader splits them: in order
    assert all(not set(folds[i]) & set(folds[j]) for i in range(10) for j in range(i))
    assert (same.reshape(10, -1).mean(1) == 0.5).all()
    assert len(set(encoded)) == count * images  # no image is left out
    for kind in (same, ~same):
        assert len(np.unique(pairs[kind].reshape(-1, 2), axis=0)) == count * images  # each once in either kind


def test_the_sheet_shows_the_set(small):
    sheet = np.asarray(Image.open(small / "faces.png"))
    assert np.array_equal(sheet[112:224, 224:336], faces.render(11, 1, 2))
    picture = np.asarray(Image.open(io.BytesIO(bytes(open_source(small).read(np.array([6]))[0][0]))))
    assert np.abs(picture.astype(int) - sheet[112:224, 224:336]).mean() < 12


def test_a_killed_run_leaves_nothing_under_the_final_name_and_no_process(tmp_path):
    command = [sys.executable, "-m", "pipelines.synthetic", str(tmp_path / "set"), "--identities", "500"]
    process = subprocess.Popen([*command, "--processes", "2"], stdout=subprocess.DEVNULL, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not [file for file in tmp_path.rglob("*") if ".rec" in file.name] and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(pid) for pid in children.read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    assert not (tmp_path / "set").exists()
    while (alive := [pid for pid in workers if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_the_command_prepares_and_then_leaves_alone(tmp_path):
    arguments = ["--identities", "2", "--images-per-identity", "1", "--held-out", "20", "--seed", "1"]
    command = [sys.executable, "-m", "pipelines.synthetic", str(tmp_path / "set"), *arguments]
    for message in ("written", "already there"):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        assert message in done.stdout
    wrong = subprocess.run([*command[:-1], "2"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr and "remove it" in wrong.stderr
