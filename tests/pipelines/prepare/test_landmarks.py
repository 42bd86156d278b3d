"""Landmarks beside a data set go with its images, or a line says that they do not."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.prepare import __main__ as prepare
from pipelines.prepare.convert import convert
from pipelines.sources import open_source
from tests.command import called
from tests.pipelines.photos import write_folder, write_tar


def images_in(folder):
    return [image.tobytes() for image in open_source(folder).read(np.arange(len(open_source(folder))))[0]]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The landmarks of each image of ``mine``; the row of one says which one it is."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "faces", {"anna": 3, "bob": 4, "carl": 2})
    convert(open_source("faces"), "mine")
    landmarks = np.random.default_rng(0).random((9, 5, 2), np.float32)
    np.save("mine/landmarks.npy", landmarks)
    return dict(zip(images_in("mine"), landmarks))


def run(command):
    ended = called(prepare.main, *command.split())
    assert ended.code == 0, ended.error
    return ended


@pytest.mark.parametrize(
    "command, outs",
    [
        ("convert mine out", ["out"]),
        ("convert mine/train.rec out", ["out"]),
        ("convert mine out --shuffle 1", ["out"]),
        ("convert mine out --changes changes.txt", ["out"]),
        ("repair mine out", ["out"]),
        ("split mine out --held-out 1", ["out/train", "out/heldout"]),
    ],
)
def test_each_image_keeps_its_own(mine, command, outs, caplog):
    fingerprint = open_source("mine").fingerprint()
    Path("changes.txt").write_text(f"# for 9 images, fingerprint {fingerprint}\n2\t-\twrong\n")
    run(command)
    for out in outs:
        expected = np.stack([mine[image] for image in images_in(out)])
        assert np.array_equal(np.load(f"{out}/landmarks.npy"), expected)
    assert sum(len(images_in(out)) for out in outs) == (8 if "changes" in command else 9)
    assert "landmarks" not in caplog.text


def test_those_of_images_that_are_dropped_go_with_them(mine):
    images = list(mine)
    write_tar("twice.tar", {f"{n}/{n}.jpg": image for n, image in enumerate([images[0], images[0], images[5]])})
    convert(open_source("twice.tar"), "twice")
    np.save("twice/landmarks.npy", np.stack([mine[images[0]], mine[images[3]], mine[images[5]]]))
    run("repair twice out --drop duplicate")
    assert np.array_equal(np.load("out/landmarks.npy"), [mine[images[0]], mine[images[5]]])


@pytest.mark.parametrize(
    "command, reason",
    [
        ("convert mine faces out", "of one of several data sets"),
        ("convert mine out --to webdataset", "only RecordIO has them beside it"),
        ("convert mine/list.txt out", "only a folder's or a .rec file's images are surely in its order"),
        ("repair mine faces out", "of one of several data sets"),
    ],
)
def test_a_line_says_what_is_left_out(mine, command, reason, caplog):
    Path("mine/list.txt").write_text("../faces/anna/anna_0001.jpg 0\n")
    run(command)
    assert f"mine/landmarks.npy is left out: {reason}" in caplog.text
    assert not Path("out/landmarks.npy").exists()


@pytest.mark.parametrize("landmarks", [np.zeros((8, 5, 2), np.float32), np.zeros((9, 5, 2)), None])
def test_a_file_that_does_not_fit_is_left_out(mine, landmarks, caplog):
    if landmarks is None:
        Path("mine/landmarks.npy").write_bytes(b"")
    else:
        np.save("mine/landmarks.npy", landmarks)
    run("split mine out --held-out 1")
    assert caplog.text.count("landmarks.npy is left out: ") == 1
    reason = "is no .npy file" if landmarks is None else "landmarks of this data set are float32 (9, 5, 2)"
    assert reason in caplog.text
