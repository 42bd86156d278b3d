"""Checkpoints: complete or absent, the newest kept, read into what was saved, refused where they do not fit."""

import errno
import json
import os
import shutil
import threading
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from train import checkpoint
from train.checkpoint import FORMAT, Checkpoints
from train.state import OptimizerState, save_weights
from train.step_folders import complete, latest_step


class Trained:
    """A layer, its optimiser after some steps, and a tensor of its own."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(dist.get_rank() if steps else 9)
        self.layer = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.1)
        self.window = torch.full((2,), float(steps))
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.layer(torch.ones(3)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def parts(self):
        optimizer = OptimizerState(self.layer, self.optimizer)
        return {"layer": self.layer, "optimizer": optimizer, "window": self.window, "own": {"window": self.window * 2}}


def saved_and_loaded(folder):
    old, checkpoints = Trained(3), Checkpoints(folder, keep=2)
    kept = {name: tensor.clone() for name, tensor in old.layer.state_dict().items()}
    for step in (3, 7, 12):
        old.layer.load_state_dict(kept)
        path = checkpoints.save(step, old.parts, {"images": 5})
        checkpoints.copied()
        with torch.no_grad():  # from here on nothing of it reaches the checkpoint
            moved = torch.rand_like(old.layer.weight)
            old.layer.weight += moved
    checkpoints.finish()
    old.layer.load_state_dict(kept)
    new = Trained(0)
    parts = new.parts
    checkpoints.load(path, parts)
    same = torch.equal(new.window, old.window) and torch.equal(parts["own"]["window"], old.window * 2)
    for trained in (old, new):
        trained.step()
    return same and all(torch.equal(a, b) for a, b in zip(old.layer.parameters(), new.layer.parameters()))


def test_goes_on_as_if_nothing_had_happened(ranks, tmp_path):
    assert ranks(1, saved_and_loaded, tmp_path) == [True]
    assert [path.name for path in Checkpoints(tmp_path, keep=2).all()] == ["step_000000007", "step_000000012"]
    assert latest_step(tmp_path) == 12 and latest_step(tmp_path / "none") == 0
    meta = json.loads((tmp_path / "step_000000012" / "meta.json").read_text())
    assert meta["format"] == FORMAT and meta["step"] == 12 and meta["images"] == 5
    assert meta["parts"] == ["layer", "optimizer", "window", "own"]


def killed_while_deleting(folder):
    """Where a kill comes: at the first file that is removed of the oldest of three."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, Trained(1).parts, {})
    removed, remove = [], os.unlink

    def stop(path, *args, **kwargs):
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path, *args, **kwargs)

    os.unlink = stop
    checkpoints.save(3, Trained(1).parts, {})
    with pytest.raises(KeyboardInterrupt):
        checkpoints.finish()
    os.unlink = remove
    left = sorted(path.name for path in complete(folder))
    path, _ = Checkpoints(folder, keep=1).newest()
    return left, path.name, sorted(path.name for path in folder.iterdir())


def test_a_kill_while_an_old_one_is_deleted(ranks, tmp_path):
    whole = ["step_000000002", "step_000000003"]
    assert ranks(1, killed_while_deleting, tmp_path) == [(whole, whole[1], whole[1:])]


def load_error(folder, parts):
    checkpoints = Checkpoints(folder, keep=1)
    if not checkpoints.all():
        checkpoints.save(4, Trained(1).parts, {})
        checkpoints.finish()
    try:
        checkpoints.load(checkpoints.all()[-1], {name: Trained(0).parts[name] for name in parts})
    except ValueError as error:
        return str(error)


def test_parts_of_another_run(ranks, tmp_path):
    (error,) = ranks(1, load_error, tmp_path, ["layer", "optimizer", "window"])
    assert "it has the part own, which this run has not; restore the config that it was written with" in error
    meta = tmp_path / "step_000000004" / "meta.json"
    meta.write_text('{"step": 4}')  # as before there was a list of parts, and a format
    assert ranks(1, load_error, tmp_path, ["layer", "optimizer", "window", "own"]) == [None]


@pytest.mark.parametrize("version", [FORMAT + 1, 0, "2", None])
def test_an_unknown_format(tmp_path, version):
    (tmp_path / "meta.json").write_text(json.dumps({"format": version, "step": 1}))
    with pytest.raises(
        ValueError, match=f"is of format {version}, and this version of Facemill reads {FORMAT} at most"
    ):
        Checkpoints.meta(tmp_path, "step")


def test_what_is_cut_short_is_no_checkpoint(tmp_path):
    for name in ("step_000000001", "step_000000002.partial", "other"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path, keep=1).all() == []


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"step": 3}', "null"])
def test_a_checkpoint_that_does_not_say_what_it_is(tmp_path, content):
    folder = tmp_path / "checkpoints" / "step_000000003"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(content)
    with pytest.raises(ValueError, match="meta.json does not say the num_classes") as raised:
        Checkpoints.meta(folder, "num_classes", "step")
    assert str(folder) in str(raised.value)


def test_weights_are_written_whole(tmp_path):
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(2, 3), path)
    before = path.read_bytes()
    broken = nn.Linear(2, 3)
    broken.register_parameter("bias", nn.Parameter(torch.empty(3, device="meta")))
    with pytest.raises(NotImplementedError):
        save_weights(broken, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def kept_though_an_old_one_stays(folder):
    """Somebody reads it: on NFS a deleted file that is open stays, under another name, and with it its folder."""
    checkpoints, trained, remove = Checkpoints(folder, keep=1), Trained(1), shutil.rmtree

    def busy(path, ignore_errors=False):
        if path.name.startswith("step_000000001.") and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path, ignore_errors=ignore_errors)

    for step in (1, 2):
        with patch.object(shutil, "rmtree", busy):
            checkpoints.save(step, trained.parts, {})
            checkpoints.finish()
    with patch.object(shutil, "rmtree", busy):
        path, _ = Checkpoints(folder, keep=1).newest()
    Checkpoints(folder, keep=1).newest()
    return path.name, sorted(path.name for path in folder.iterdir())


def test_an_old_one_that_cannot_be_deleted_ends_no_run(ranks, tmp_path):
    assert ranks(1, kept_though_an_old_one_stays, tmp_path) == [("step_000000002", ["step_000000002"])]


def saved_though_leftovers_stay(folder):
    """Names at which something lies that nobody can delete are free nevertheless."""
    for name in ("step_000000001", "step_000000001.partial", "step_000000002.damaged"):
        (folder / name).mkdir()
        (folder / name / ".nfs1").touch()
    checkpoints, trained = Checkpoints(folder, keep=2), Trained(1)

    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with patch.object(shutil, "rmtree", busy):
        checkpoints.newest()
        for step in (1, 2):
            checkpoints.save(step, trained.parts, {})
            checkpoints.finish()
        (folder / "step_000000002" / ".metadata").write_bytes(b"damaged")
        found, _ = checkpoints.newest()
        checkpoints.save(2, trained.parts, {})
        checkpoints.finish()
        checkpoints.save(2, trained.parts, {})
        checkpoints.finish()
    aside = (folder / "step_000000002.damaged" / ".metadata").read_bytes()
    newest, _ = checkpoints.newest()
    return found.name, aside, newest.name, sorted(path.name for path in folder.iterdir())


def test_what_cannot_be_deleted_is_in_nobodys_way(ranks, tmp_path):
    there = ["step_000000001", "step_000000002", "step_000000002.damaged"]
    assert ranks(1, saved_though_leftovers_stay, tmp_path) == [(there[0], b"damaged", there[1], there)]


def test_copies_are_waited_for_on_the_runs_own_device(tmp_path, monkeypatch):
    """A thread begins on the first GPU; who waits there for copies from another waits for nothing."""
    taken = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: taken.append((threading.current_thread().name, device))
    )
    monkeypatch.setattr(checkpoint, "DefaultStager", lambda options: options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, expected in (("cpu", []), ("cuda:1", [("copy_0", torch.device("cuda:1"))])):
        checkpoints = Checkpoints(tmp_path, 1, torch.device(device))
        checkpoints._copier.submit(int).result()
        assert taken == expected and checkpoints._stager.use_pinned_memory == bool(expected)
