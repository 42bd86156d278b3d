"""How commands end and print, in processes of their own: streams are what a terminal would be."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

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


def test_the_former_place_of_the_synthetic_faces_says_the_new_one():
    result = python("-m", "pipelines.embedded", "data/embedded")
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)
    assert b"python -m pipelines.synthetic" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prepare", "convert", "a", "b", "--size", "0"], "argument --size: 0 is less than 1"),
        (["prepare", "convert", "a", "b", "--shuffle", "-1"], "argument --shuffle: -1 is less than 0"),
        (["prepare", "inspect", "a", "--sample", "many"], "argument --sample: 'many' is no whole number"),
        (["synthetic", "a", "--seed", "-1"], "argument --seed: -1 is less than 0"),
    ],
)
def test_counts_that_are_none_are_refused(arguments, message):
    result = python("-m", f"pipelines.{arguments[0]}", *arguments[1:])
    assert result.returncode == 2 and result.stderr.decode().splitlines()[-1].endswith(message)
