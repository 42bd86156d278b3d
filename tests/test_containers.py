"""Containers, workflows and hooks name what is there: files, extras, versions, commands. Nothing here builds them."""

import re
import shlex
import stat
from pathlib import Path

import pytest
import yaml

from tests.test_architecture import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
PROJECT = (ROOT / "pyproject.toml").read_text()
EXTRAS = set(re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE))


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what they are given, continued lines joined, without remarks."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def extras_of(command: str) -> set[str]:
    return {extra for group in re.findall(r"\.\[([\w,]+)\]", command) for extra in group.split(",")}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_is_made_of_what_is_there(path):
    found = instructions(path)
    assert found[0][0] == "FROM" and re.fullmatch(r"python:3\.1[0-2]-slim-\w+", found[0][1])
    assert {name for name, _ in found} <= {"FROM", "RUN", "WORKDIR", "COPY", "CMD"}
    for name, rest in found:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
        if name == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest and extras_of(rest) <= EXTRAS
            assert "-c constraints.txt" in rest or "'^torch==' constraints.txt" in rest
        if name == "RUN":
            assert all(shlex.split(part) for part in rest.split("&&"))
    assert found[-1] == ("CMD", '["facemill", "doctor"]')
    assert ".git" in (ROOT / ".dockerignore").read_text().split()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_container_is_for_is_said_in_it(path):
    remarks = re.findall(r"^# ?(.*)$", path.read_text(), re.MULTILINE)
    built = [line for line in remarks if "docker build" in line]
    assert len(built) == 1 and f"docker/{path.name} " in built[0]
    configs = re.findall(r"configs/\w+\.yaml", path.read_text())
    assert all((ROOT / config).is_file() for config in configs)


def test_workflows_call_what_is_there():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for job in jobs.values():
            assert job["timeout-minutes"] <= 60
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step)
                for script in re.findall(r"(?<![\w/.])(\.?[\w]+/run)\b", step.get("run", "")):
                    assert (ROOT / script).stat().st_mode & stat.S_IXUSR
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    pythons = set(re.search(r"python: \[(.*)\]", text)[1].replace('"', "").split(", "))
    assert pythons == set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT))


def test_hooks_are_commands_of_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for hook in hooks:
        program, *options = hook["entry"].removeprefix(".venv/bin/").split()
        assert f"$(BIN)/{' '.join([program, *options[:1]])}".rstrip() in lint
