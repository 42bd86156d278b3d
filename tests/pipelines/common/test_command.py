"""How commands end and print, in processes of their own: streams are what a terminal would be."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare.__main__ import main as prepare
from pipelines.synthetic.__main__ import main as synthetic
from tests.command import called
from tests.processes import CONTEXT

STRICT = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=STRICT, timeout=120)


def test_any_name_can_be_printed():
    script = """
import os
from pipelines.common.command import run
from pipelines.common.errors import UserError
name = os.fsdecode(b"caf\\xe9.jpg")
def main():
    print(name)
    raise UserError(f"{name} is bad")
run(main)
"""
    result = python("-c", script)
    assert (result.returncode, result.stdout) == (2, b"caf\\udce9.jpg\n")
    assert result.stderr == b"error: caf\\udce9.jpg is bad\n"


@pytest.mark.parametrize("command", ["check", "repair"])
def test_names_that_are_not_utf8(tmp_path, command):
    folder = tmp_path / "faces" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(folder / f"{number}.jpg")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes((folder / "0.jpg").read_bytes()[:200])
    out = tmp_path / "out"
    where = ["--report", str(out)] if command == "check" else [str(out)]
    result = python("-m", "pipelines.prepare", command, str(tmp_path / "faces"), *where)
    assert (result.returncode, result.stderr.count(b"error")) == (1 if command == "check" else 0, 0)
    assert b"caf\\udce9.jpg" in result.stdout and out.exists()


def script(body):
    """A command whose ``main`` is ``body``."""
    lines = ["import os, sys, time", "from pipelines.common.command import run", "def main():"]
    return "\n".join([*lines, *("    " + line for line in body.splitlines()), "run(main)"])


def command(body, **environment):
    """A process that runs ``body`` as a command does."""
    return subprocess.Popen(
        [sys.executable, "-c", script(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**STRICT, **environment},
    )


def _child(body, folder, environment):
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "error")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    exec(script(body), {})


def forked(body, folder, seconds=60, **environment):
    """How a command ends whose process has imported torch before."""
    process = CONTEXT.Process(target=_child, args=(body, folder, environment))
    process.start()
    process.join(seconds)
    code = process.exitcode
    process.kill()
    return code, *((folder / name).read_text() for name in ("out", "error"))


def ended(process, seconds=60):
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out.decode(), error.decode()


MISTAKE = "from pipelines.common.errors import UserError; raise UserError('run[/x] a\\nb \\x1b[31m \\u202e')"


def test_an_error_is_one_line_whatever_names_hold():
    code, out, error = ended(command(MISTAKE))
    assert (code, out, error) == (2, "", "error: run[/x] a\\nb \\x1b[31m \\u202e\n")


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        (MISTAKE, 2, "error on rank 1: run[/x]"),
        ("open('/none/x')", 2, "error on rank 1: [Errno 2] No such file or directory: '/none/x'"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("raise KeyboardInterrupt", 130, ""),
        (
            "from torch.distributed import DistNetworkError; raise DistNetworkError('gone')",
            2,
            "error on rank 1: another",
        ),
        (
            "raise RuntimeError('[x/gloo/transport/tcp/pair.cc:5] Connection closed by peer')",
            2,
            "error on rank 1: another",
        ),
        ("raise RuntimeError('Application timeout caused pair closure')", 2, "error on rank 1: another"),
    ],
)
def test_a_rank_that_fails_ends_at_once(tmp_path, body, code, last):
    """What would wait at the end of the interpreter, as NCCL does for the other ranks, is not waited for."""
    body = f"import threading; threading.Thread(target=time.sleep, args=(100,)).start(); print('before')\n{body}"
    rank = {"RANK": "1", "WORLD_SIZE": "2"}
    if "torch" in body:
        found, out, error = forked(body, tmp_path, 30, **rank)
    else:
        found, out, error = ended(command(body, **rank), 30)
    assert (found, out) == (code, "before\n")
    assert (error.splitlines() or [""])[-1].startswith(last)
    assert code == 1 or error.count("\n") <= 1


def test_a_bug_keeps_its_traceback():
    code, _, error = ended(command("1 / 0"))
    assert code == 1 and "Traceback" in error


@pytest.mark.parametrize(
    "body",
    [
        "import numpy; numpy.ones(2**50)",
        "import torch; torch.empty(2**50)",
        "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate\\n20.00 MiB.')",
    ],
)
def test_a_want_of_memory_is_no_bug(tmp_path, body):
    code, _, error = forked(body, tmp_path)
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("error: out of memory (") and "llocate" in error and "smaller batches" in error


def test_where_a_mistake_came_from():
    code, _, error = ended(command(MISTAKE, FACEMILL_TRACEBACK="1"))
    assert code == 2 and "Traceback" in error and "error: run[/x]" in error


def test_a_command_that_is_ended_leaves_nothing_half_written(tmp_path):
    body = f"""
from pipelines.common.files import replacing
with replacing({str(tmp_path / "x")!r}) as temporary:
    temporary.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(100)
"""
    process = command(body)
    assert process.stdout.readline() == b"half\n" and len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "main, arguments, message",
    [
        (prepare, ["convert", "a", "b", "--size", "0"], "argument --size: 0 is less than 1"),
        (prepare, ["convert", "a", "b", "--shuffle", "-1"], "argument --shuffle: -1 is less than 0"),
        (prepare, ["inspect", "a", "--sample", "many"], "argument --sample: 'many' is no whole number"),
        (synthetic, ["a", "--seed", "-1"], "argument --seed: -1 is less than 0"),
    ],
)
def test_counts_that_are_none_are_refused(main, arguments, message):
    ended = called(main, *arguments)
    assert ended.code == 2 and ended.error.splitlines()[-1].endswith(message)


@pytest.mark.parametrize("how", ["print(line, flush=True)", "Console().print(line)", "print(line, file=sys.stderr)"])
def test_work_goes_on_when_the_reader_of_its_output_has_gone(tmp_path, how):
    body = f"""
from rich.console import Console
line = "x" * 1000
for _ in range(200):  # more than a pipe holds
    {how}
open({str(tmp_path / "done")!r}, "w").close()
"""
    process = command(body)
    stream = process.stderr if "stderr" in how else process.stdout
    assert stream.read(10) == b"x" * 10
    stream.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").exists()


def test_work_goes_on_when_its_terminal_has_gone(tmp_path):
    ours, theirs = os.openpty()
    body = f"""
import time
for _ in range(200):
    print("x" * 1000, flush=True)
    time.sleep(0.001)
open({str(tmp_path / "done")!r}, "w").close()
"""
    with subprocess.Popen([sys.executable, "-c", script(body)], stdout=theirs, stderr=theirs, env=STRICT) as process:
        os.close(theirs)
        assert os.read(ours, 10) == b"x" * 10
        os.close(ours)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").exists()


def test_a_pipe_that_breaks_elsewhere_is_told():
    process = command("raise BrokenPipeError(32, 'Broken pipe')")
    assert ended(process) == (2, "", "error: [Errno 32] Broken pipe\n")
