import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.common.files import (
    check_file,
    check_folder,
    distinct_names,
    load_array,
    remove_leftovers,
    replacing,
    save_array,
    sync,
)
from tests.test_architecture import ROOT


@pytest.mark.parametrize(
    "paths, names",
    [
        (["lfw", "cfp_fp"], ["lfw", "cfp_fp"]),
        (["a/lfw", "b/lfw", "b/agedb_30"], ["a/lfw", "b/lfw", "agedb_30"]),
        (["/data/lfw/x/set", "/data/cfp/x/set", "set.v2", "set.v3"], ["lfw/x/set", "cfp/x/set", "set.v2", "set.v3"]),
        (["/lfw", "/a/lfw", "/b/a/lfw"], ["lfw", "a/lfw", "b/a/lfw"]),
        ([], []),
    ],
)
def test_paths_of_one_name_are_told_apart_by_their_folders(paths, names):
    assert distinct_names([Path(path) for path in paths]) == names == distinct_names(paths)


def test_a_relative_path_gets_the_folder_it_lies_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert distinct_names(["lfw", "sub/../../there/lfw"]) == ["here/lfw", "there/lfw"]


def test_one_path_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a/lfw is given twice"):
        distinct_names(["a/lfw", "b/lfw", str(tmp_path / "a" / "lfw")])


@pytest.fixture
def calls(monkeypatch):
    """What was asked of the disk, in order: the kind of each thing synced, and each renaming."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("renamed"), replace(a, b)))
    return calls


def test_what_replaces_a_file_is_on_the_disk(tmp_path, calls):
    """First its content, then its name: the other way round a power cut leaves an empty file."""
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert calls == [str(temporary), "renamed", str(tmp_path)]
    with replacing(tmp_path / "x", durable=False) as temporary:
        temporary.write_text("newer")
    assert calls[3:] == ["renamed"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "newer"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_file_that_cannot_grow_is_named(tmp_path, code):
    with pytest.raises(OSError, match="a.bin") as error, replacing(tmp_path / "a.bin") as temporary:
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))
    assert error.value.errno == code and list(tmp_path.iterdir()) == []


def test_an_array_that_does_not_fit_is_named(tmp_path):
    path, numbers = tmp_path / "a.npy", np.arange(100_000).reshape(-1, 5)
    save_array(path, numbers[::2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            save_array(path, numbers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(np.load(path), numbers[::2]) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change", [("}", "{"), ("'descr'", "b'descr'"), ("<f8", "<,8"), ("(4, 2)", "(4, 3)"), ("NUM", "PKM")]
)
def test_a_damaged_array_is_one_line(tmp_path, change):
    """Whatever class numpy's errors are of: a tokenizer's, a syntax error, a type error."""
    save_array(tmp_path / "a.npy", np.zeros((4, 2)))
    assert load_array(tmp_path / "a.npy").shape == (4, 2)
    content = (tmp_path / "a.npy").read_bytes()
    damaged = content.replace(*(text.encode() for text in change))
    assert damaged != content
    (tmp_path / "a.npy").write_bytes(damaged)
    with pytest.raises(UserError, match="a.npy is no sound .npy file"):
        load_array(tmp_path / "a.npy")


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros(3))
    with pytest.raises(UserError, match="a.npz is no sound .npy file"):
        load_array(tmp_path / "a.npz")


def test_an_error_has_the_name_that_the_user_gave(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, kind in (("none/a.txt", FileNotFoundError), ("folder", IsADirectoryError)):
        path = tmp_path / name
        with pytest.raises(kind) as error, replacing(path) as temporary:
            temporary.write_text("new")
        assert str(error.value).endswith(f": '{path}'")
        with pytest.raises(kind):  # as known beforehand
            check_file(path)
    check_file(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in ("file", "file/a", "file/a/b"):
        with pytest.raises(NotADirectoryError, match="file"):
            check_folder(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    for path in (".", "a/b", "../x"):
        check_folder(Path(path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=str(tmp_path)):
        check_folder(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_file_systems_that_do_not_sync_folders(tmp_path, monkeypatch, code, raised):
    def refuse(_):
        raise OSError(code, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    if raised:
        with pytest.raises(OSError):
            sync(tmp_path)
    else:
        sync(tmp_path)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_made_for_their_user_alone_get_what_the_umask_leaves(tmp_path, mask, mode):
    script = """
import os, sys
from pathlib import Path
from pipelines.common.files import replacing
with replacing(sys.argv[1]) as temporary:
    os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
"""
    target = tmp_path / "model.safetensors"
    subprocess.run([sys.executable, "-c", script, target], cwd=ROOT, umask=mask, check=True)
    assert target.stat().st_mode & 0o777 == mode


def test_leftovers_of_killed_processes(tmp_path):
    with pytest.raises(SystemExit), replacing(tmp_path / "model.pt") as temporary:
        left = tmp_path / temporary.name
        raise SystemExit
    kept = [".hidden", ".hidden.tmp", "model.pt.12345678.tmp", ".model.pt.1234567g.tmp", "model.pt"]
    for name in [left.name, ".a\nb.0123abcd.tmp", *kept]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "no folder")
