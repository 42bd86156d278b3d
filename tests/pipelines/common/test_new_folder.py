"""A new folder: whole or absent, by one writer at a time, and only where a folder can take the name."""

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.common.errors import UserError
from pipelines.common.new_folder import check_new, clear, new_folder


def write(out):
    with new_folder(out) as partial:
        clear(partial)
        (partial / "file").write_text("whole")


def test_it_appears_as_a_whole_and_an_empty_one_gives_way(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("whole")
        assert not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_what_an_interrupted_run_left_is_kept_until_it_is_cleared(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as partial:
        (partial / "below").mkdir()
        (partial / "below" / "half").touch()
        (partial / "link").symlink_to(tmp_path)
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as partial:
        assert (partial / "below" / "half").exists()
        clear(partial)
        (partial / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_second_writer_is_told(tmp_path):
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("half")
        with pytest.raises(UserError, match="out is being written by another process: wait for its end"):
            write(tmp_path / "out")
        assert (partial / "file").read_text() == "half"
    assert (tmp_path / "out" / "file").read_text() == "half"


def test_a_killed_writer_holds_nothing(tmp_path):
    code = "import sys, time; from pathlib import Path; from pipelines.common.new_folder import new_folder\n"
    code += "with new_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="being written by another process"):
            write(tmp_path / "out")
        process.send_signal(signal.SIGKILL)
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_writer_that_was_waited_for_is_not_written_over(tmp_path, monkeypatch):
    """One that ends between the look at the name and the lock."""
    real = fcntl.flock

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", real)
        write(tmp_path / "out")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="out exists already"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "whole"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, number):
    def none(descriptor, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    write(tmp_path / "out")
    assert (tmp_path / "out" / "file").exists()
    assert "on a file system without locks" in caplog.text


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    def broken(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/.."])
def test_a_name_that_no_new_folder_can_get(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a new folder cannot be called '.*': give it a name of its own"):
        check_new(Path(name))


def test_a_link_cannot_be_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    for target in ("disk", "nowhere"):
        (tmp_path / f"to {target}").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"to {target} is a link"):
            check_new(tmp_path / f"to {target}")
    check_new(tmp_path / "to disk" / "below")


def test_a_mount_point_cannot_be_replaced():
    with pytest.raises(UserError, match="/proc is a mount point"):
        check_new(Path("/proc"))
