"""What interruptions of a conversion leave, and how it goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.prepare import __main__ as prepare
from pipelines.prepare import convert as convert_module
from pipelines.prepare.convert import convert
from pipelines.sources import open_source
from tests.command import called
from tests.pipelines.photos import encoded, people_in, picture, write_folder, write_tar


@pytest.fixture
def people(tmp_path):
    return write_folder(tmp_path / "faces", {"anna": 3, "Bob Ross": 1, "çelik": 2, "ώμέγα": 4})


def test_finished_shards_are_kept(tmp_path, people, monkeypatch):
    source = open_source(tmp_path / "faces")
    written = []
    original = convert_module._add

    def failing(archive, name, content):
        if name == "000000005.jpg" and len(written) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        original(archive, name, content)

    monkeypatch.setattr(convert_module, "_add", failing)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "out", form="webdataset", shard_size=2)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.partial").glob("*.tar"))) == 2
    assert not list((tmp_path / ".out.partial").glob(".*.tmp"))
    written += ["x"] * 100
    convert(source, tmp_path / "out", form="webdataset", shard_size=2)
    assert written.count("000000000.jpg") == 1 and written.count("000000004.jpg") == 2
    assert people_in(open_source(tmp_path / "out")) == people
    assert not (tmp_path / ".out.partial").exists()


def test_another_job_starts_anew(tmp_path, people):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "train-000000.tar").write_bytes(b"of another job")
    (partial / "job.json").write_text('{"form": "webdataset"}')
    convert(open_source(tmp_path / "faces"), tmp_path / "out", form="webdataset")
    assert people_in(open_source(tmp_path / "out")) == people


@pytest.mark.parametrize("other", ["pixels and place", "pixels in the same place", "place"])
def test_shards_of_other_images_are_not_gone_on_with(tmp_path, monkeypatch, other):
    """Same people, as many images, the same sizes in bytes: only what is seen, or where it lies, is another."""

    def fill(folder, **colours):
        folder.mkdir(exist_ok=True)
        shown = {name: colours.get(name, colours["rest"]) for name in ("a0", "a1", "a2", "b0", "b1", "b2")}
        images = {name: encoded(Image.new("RGB", (8, 8), colour), "PNG") for name, colour in shown.items()}
        write_tar(folder / "x.tar", {f"{name[0]}/{name[1]}.png": image for name, image in images.items()})
        return folder

    def stopped(out):
        original = convert_module._add

        def add(archive, name, content):
            if name.startswith("000000004"):
                raise KeyboardInterrupt
            original(archive, name, content)

        with monkeypatch.context() as patched:
            patched.setattr(convert_module, "_add", add)
            with pytest.raises(KeyboardInterrupt):
                run(out)

    def run(data):
        arguments = ["convert", str(data), str(tmp_path / "out"), "--to", "webdataset", "--shard-size", "2"]
        monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
        prepare.main()

    if other == "place":  # which has to count by itself where the sample misses the image
        monkeypatch.setattr(convert_module, "_SAMPLE", 1)
    stopped(fill(tmp_path / "v1", rest="red"))
    assert len(list(tmp_path.glob(".out.partial/*.tar"))) == 2
    in_place = other == "pixels in the same place"
    data = fill(tmp_path / ("v1" if in_place else "v2"), rest="red", a1="blue")
    run(data)
    assert people_in(open_source(tmp_path / "out")) == people_in(open_source(data))


def test_an_image_that_is_readable_the_second_time_is_not_left_out(tmp_path, people, monkeypatch):
    """And half a line, as a killed run leaves it, costs none."""
    monkeypatch.setattr(convert_module, "_SAMPLE", 1)  # so that it is not one by which the data are known again
    source = open_source(tmp_path / "faces")
    mended, lost = (Path(source.place(index)) for index in (4, 5))
    content = mended.read_bytes()
    mended.write_bytes(b"")
    lost.write_bytes(b"")
    original = convert_module._add

    def add(archive, name, content):
        if name == "000000007.jpg":  # the second good one of its shard
            raise KeyboardInterrupt
        original(archive, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(convert_module, "_add", add)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", form="webdataset", shard_size=4)
    log = tmp_path / ".out.partial" / "left_out.jsonl"
    log.write_text(log.read_text().rstrip()[:-9])
    mended.write_bytes(content)
    written = convert(source, tmp_path / "out", form="webdataset", shard_size=4)
    assert (written.images, written.left_out) == (9, 1)
    (line,) = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == 5 and str(lost) in json.loads(line)["image"]


def stopped_in_the_last_shard(monkeypatch, *arguments):
    """A conversion of ten images in shards of four."""
    original = convert_module._add

    def add(archive, name, content):
        if name == "000000009.jpg":
            raise KeyboardInterrupt
        original(archive, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(convert_module, "_add", add)
        assert called(prepare.main, *arguments).code == 130


@pytest.mark.parametrize("change", ["the path is absolute", "an image of the sample is unreadable then", "and now"])
def test_what_says_nothing_of_the_images_costs_no_shard(tmp_path, people, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    image = Path("faces/anna/anna_0001.jpg")
    content = image.read_bytes()
    if change == "an image of the sample is unreadable then":
        image.write_bytes(b"")
    options = "out", "--to", "webdataset", "--shard-size", "4"
    stopped_in_the_last_shard(monkeypatch, "convert", "faces", *options)
    shards = sorted(Path(".out.partial").glob("*.tar"))
    inodes = [shard.stat().st_ino for shard in shards]
    image.write_bytes(b"" if change == "and now" else content)
    data = tmp_path / "faces" if change == "the path is absolute" else "faces"
    assert called(prepare.main, "convert", data, *options).code == 0
    assert len(inodes) == 2 and [Path("out", shard.name).stat().st_ino for shard in shards] == inodes


def test_progress_is_over_all_that_is_still_to_be_written(tmp_path, people, monkeypatch):
    arguments = "convert", tmp_path / "faces", tmp_path / "out", "--to", "webdataset", "--shard-size", "4"
    stopped_in_the_last_shard(monkeypatch, *arguments)
    (tmp_path / ".out.partial" / "train-000000.tar").unlink()
    out = called(prepare.main, *arguments).out.splitlines()
    assert [line.partition(" in ")[0] for line in out[:-1]] == ["writing out: 6 of 6"]


@pytest.mark.parametrize("form", ["recordio", "webdataset"])
def test_a_killed_run_leaves_nothing_under_the_name(tmp_path, form):
    image = encoded(picture(0, 700), quality=98)
    for person in range(40):
        (tmp_path / "faces" / f"{person}").mkdir(parents=True)
        for n in range(30):
            (tmp_path / "faces" / f"{person}" / f"{n}.jpg").write_bytes(image)
    command = [sys.executable, "-m", "pipelines.prepare", "convert", "faces", "out", "--to", form, "--threads", "1"]
    command += ["--quality", "90"]  # slow enough to be killed in the middle of it
    command += ["--shard-size", "40"] * (form == "webdataset")
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    while not list(tmp_path.glob(".out.partial/.*.tmp")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    convert(open_source(tmp_path / "faces"), tmp_path / "out", form=form)
    assert len(open_source(tmp_path / "out")) == 1200
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "out").glob(".*"))


def test_what_exists_is_not_overwritten(tmp_path, people):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="out exists already"):
        convert(open_source(tmp_path / "faces"), tmp_path / "out")


def test_a_second_command_leaves_the_first_alone(tmp_path, people, monkeypatch):
    """It is of another job: before, it removed what the first was writing."""
    monkeypatch.chdir(tmp_path)
    original, second = convert_module._add, []

    def add(archive, name, content):
        if not second:
            second.append(None)
            second.append(called(prepare.main, "convert", "faces", "out"))
        original(archive, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(convert_module, "_add", add)
        first = called(prepare.main, "convert", "faces", "out", "--to", "webdataset")
    assert first.code == 0 and people_in(open_source("out")) == people
    assert second[1].code == 2
    assert second[1].error.endswith(
        "error: out is being written by another process: wait for its end, or name another folder\n"
    )
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("out/.*"))


@pytest.mark.parametrize("arguments", ["convert missing link", "repair missing link", "align missing link --landmarks"])
@pytest.mark.parametrize("out", ["link", "."])
def test_what_cannot_become_a_folder_is_refused_before_the_work(tmp_path, monkeypatch, arguments, out):
    """There is no data set at all: were it opened first, that would be the error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    ended = called(prepare.main, *arguments.replace("link", out).split())
    assert ended.code == 2 and ended.error.count("\n") == 1
    assert ("link is a link" if out == "link" else "a new folder cannot be called '.'") in ended.error


def test_a_split_is_refused_before_the_work_too(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "heldout").symlink_to(tmp_path)
    ended = called(prepare.main, "split", tmp_path / "missing", tmp_path / "out", "--held-out", "1")
    assert ended.code == 2 and "heldout is a link" in ended.error
