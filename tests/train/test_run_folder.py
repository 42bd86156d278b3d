"""A run's folder: one run at a time, seen by all ranks, cleared of what a kill has left."""

import errno
import fcntl
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from evaluate.features.ranks import World
from train import distributed
from train.run_folder import RunFolder


def world():
    return World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())


def held_twice(path):
    first, second = RunFolder(path), RunFolder(path)
    first.claim(world())
    content = (path / ".lock").read_text()
    with pytest.raises(ValueError) as raised:
        second.claim(world())
    unchanged = content == (path / ".lock").read_text()
    first.release()
    second.claim(world())
    second.release()
    return str(raised.value), unchanged


def test_one_run_at_a_time(ranks, tmp_path):
    ((error, unchanged),) = ranks(1, held_twice, tmp_path / "run")
    assert "is in use by process" in error and "choose another output" in error and unchanged


def claimed(path, own):
    distributed._LATE = 1.0
    folder = RunFolder(path / str(dist.get_rank()) if own else path)
    try:
        folder.claim(world())
    except ValueError as error:
        return str(error)
    finally:
        folder.release()


def test_every_rank_has_to_see_it(ranks, tmp_path):
    assert ranks(2, claimed, tmp_path, False) == [None, None]
    for error in ranks(2, claimed, tmp_path, True):
        assert "must be a folder that all nodes share" in error


def leave(path, content):
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    (path / ".lock").write_text(content)
    (path / ".best.pt.0123abcd.tmp").touch()
    (path / "notes.tmp").touch()
    folder.claim(world())
    folder.check_unused()
    folder.note_checkpoint()
    folder.release()
    return json.loads((path / ".lock").read_text())


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"holder": "a name that is much longer than the next one"}' + " " * 99]
)
def test_what_a_kill_has_left(ranks, tmp_path, content):
    (notes,) = ranks(1, leave, tmp_path / "run", content)
    assert notes["had_checkpoint"] is True
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "notes.tmp"}


def unused(path):
    folder = RunFolder(path)
    folder.claim(world())
    try:
        folder.check_unused()
    except ValueError as error:
        return str(error)
    finally:
        folder.release()


@pytest.mark.parametrize("left", ["model.pt", "best.pt", "noted", None])
def test_results_are_not_written_over(ranks, tmp_path, left):
    if left == "noted":
        ranks(1, leave, tmp_path, "")
    elif left:
        Path(tmp_path / left).touch()
    (error,) = ranks(1, unused, tmp_path)
    assert error is None if left is None else "no checkpoint to go on from" in error


def held_without_locks(path, number):
    def flock(*_):
        raise OSError(number, "none here")

    with patch.object(fcntl, "flock", flock):
        RunFolder(path).claim(world())


def test_a_file_system_without_locks_is_no_obstacle(ranks, tmp_path):
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        assert ranks(1, held_without_locks, tmp_path / "run", number) == [None]
