"""Every command that README.md and docs/ show is one that the program takes."""

import pytest

from tests.docs.blocks import ROOT
from tests.docs.commands import Command, commands, take

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.file.stem}:{command.line}")
def test_the_program_takes_it(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    take(command)


def test_all_rooms_with_commands_are_shown():
    rooms = {command.module.split(".")[0] for command in COMMANDS}
    assert rooms >= {"pipelines", "models", "train", "evaluate", "benchmarks"} and len(COMMANDS) > 40


@pytest.mark.parametrize(
    "line",
    [
        "python -m evaluate.labels faces --checkpont a.onnx",
        "python train/run.py --config configs/quickstart.yaml a=1",
    ],
)
def test_a_wrong_command_is_noticed(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError)):
        take(Command(line, ROOT / "README.md", 1))
