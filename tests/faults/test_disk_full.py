"""A disk that fills up at any write: one line that says which, nothing half-written, and the same command goes on."""

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from models import create_model
from models.export import main as export
from pipelines.prepare.__main__ import main as prepare
from pipelines.sources.recordio_writer import write_dataset
from tests.faults.forked import Attack, Forked
from tests.faults.support import same
from train.state import save_weights

ROOM = "make room and run the same command again"


@pytest.fixture
def disk():
    """A folder on a disk of six megabytes of its own."""
    script = "mount -t tmpfs -o size=6m none /mnt && exec sleep infinity"
    try:
        holder = subprocess.Popen(["unshare", "-r", "-m", "sh", "-c", script], stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        pytest.skip(f"cannot mount a disk: {error}")
    with contextlib.ExitStack() as opened:
        opened.callback(lambda: (holder.kill(), holder.wait(), holder.stderr.close()))
        while "sleep" not in Path(f"/proc/{holder.pid}/comm").read_text():
            if holder.poll() is not None:
                pytest.skip(f"cannot mount a disk: {holder.stderr.read().decode()}")
            time.sleep(0.01)
        yield Path(f"/proc/{holder.pid}/root/mnt")  # the disk as its holder sees it


def complaint(run):
    """The line in which a command says that the disk is full; there is one, and exit code 2."""
    code, said = run.wait(), run.said()
    assert code == 2 and "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert line.endswith(ROOM), line
    return line


# Where the room ends, and the file or folder that the line names. Images are read ahead: where there is no room to list
# a bad one, the log may be the first to be told of.
PLACES = {
    "config.yaml": (r"open \S*config\.yaml", r"config\.yaml"),
    "the log": (r"open log\.jsonl", r"log\.jsonl"),
    "the list of bad images": (r"open quarantine\.jsonl", r"(quarantine|log)\.jsonl"),
    "tensors of a checkpoint": (r"open \S*step_000000020\.partial/\S*distcp", "step_000000020"),
    "what a checkpoint is": (r"open \S*step_000000020\.partial/\S*meta\.json", "step_000000020"),
    "best.pt": (r"open \S*best\.pt", r"best\.pt"),
    "model.pt": (r"open \S*model\.pt", r"model\.pt"),
}


SHORT = {"schedule": {"epochs": 5}}  # 30 steps; in shorter ones step 20 writes a best.pt, too


@pytest.fixture(scope="module")
def short(make_job, tmp_path_factory):
    """A short run without a fault."""
    job = make_job(tmp_path_factory.mktemp("short"), **SHORT)
    job.finish()
    return job


@pytest.mark.parametrize("place", PLACES)
def test_a_run(make_job, short, disk, tmp_path, place):
    pattern, name = PLACES[place]
    job, filler = make_job(tmp_path, output=disk / "run", **SHORT), disk / "filler"
    line = complaint(job.fork("log.sinks=[jsonl]", attack=Attack(pattern, fill=filler)))
    assert re.search(rf"{re.escape(str(disk))}/run/\S*{name}", line), line
    left = [str(path) for path in job.output.rglob("*") if re.search(r"\.partial|\.tmp", path.name)]
    assert not left, "half-written files take the room"
    kept = job.checkpoints
    if place != "model.pt":  # best.pt is written beside the checkpoint of its step, which may find no room either
        assert min(3, max(job.step() - 1, 0) // 4) - len(kept) in ((0, 1) if place == "best.pt" else (0,))
    filler.unlink()
    said = job.finish("log.sinks=[jsonl]")
    assert f"resuming at step {int(kept[-1][5:])}" in said if kept else "starting" in said
    same(job, short)


def test_other_commands(world, disk, tmp_path):
    """``prepare convert`` in both forms, ``models.export``: nothing looks finished, and once there is room they are."""
    made = disk / "made"
    made.mkdir()
    model = {"name": "mbf", "embedding_size": 16, "input_size": 32, "width": 0.0625}
    save_weights(create_model(**model), tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    onnx = ["--checkpoint", str(tmp_path), "--output", str(made / "model.onnx")]
    for name, command, arguments, pattern in (
        ("records", prepare, ["convert", str(world / "faces"), str(made / "records")], r"open \S*train\.rec"),
        ("shards", prepare, ["convert", str(world / "faces"), str(made / "shards"), "--to", "webdataset"], r"\.tar"),
        ("export", export, onnx, r"open \S*\.onnx"),
    ):
        line = complaint(Forked(command, arguments, made, tmp_path / name, Attack(pattern, fill=disk / "filler")))
        assert f"{made}/" in line, line
        assert not [path for path in made.rglob("*") if path.suffix == ".tmp"]
        assert all(path.name == f".{name}.partial" for path in made.iterdir()), "a half under its final name"
        (disk / "filler").unlink()
        run = Forked(command, arguments, made, tmp_path / name)
        assert run.wait() == 0, run.said()
        shutil.rmtree(made)
        made.mkdir()


def test_an_index_is_kept_where_there_is_room(make_job, world, disk, tmp_path):
    """A run needs none: without room for it, it is made again at each start."""
    images = [
        [path.read_bytes() for path in sorted(folder.iterdir())] for folder in sorted((world / "faces").iterdir())
    ]
    write_dataset(disk / "data", images, image_size=32)
    job = make_job(tmp_path, data={"train": str(disk / "data")}, schedule={"epochs": 1})
    before = set((disk / "data").iterdir())
    run = Forked(*job.training(), disk / "data", job.notes, Attack("open", fill=disk / "filler"))
    assert run.wait() == 0, run.said()
    assert (disk / "filler").exists() and set((disk / "data").iterdir()) == before
