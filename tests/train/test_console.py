"""The console script: each of its names is a command, and behaves as that does."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.docs.blocks import ROOT
from train.console import COMMANDS, main


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["facemill", *arguments])
    main()


def test_every_command_there_is_has_a_name():
    rooms = ("pipelines", "models", "train", "evaluate")
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if "argparse.ArgumentParser(" in path.read_text() and '__name__ == "__main__"' in path.read_text()
    }
    assert commands == {module for module, _ in COMMANDS.values()}
    assert all(find_spec(module) for module in commands)


def test_help_names_all(monkeypatch, capsys):
    for arguments in ([], ["--help"]):
        call(monkeypatch, *arguments)
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in COMMANDS)


def test_a_command_gets_its_arguments(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "export", "--help")
    assert end.value.code == 0 and "--dynamic-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean 'train'?"),
        (["completion", "fish"], "error: unknown shell 'fish'"),
        (["verify", "--checkpoint", "none", "--bins", "none.bin"], "error: "),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, line):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(line) and error.count("\n") == 1


def test_bash_completes_commands():
    program = f"'{sys.executable}' -c 'from train.console import main; main()'"
    script = f'eval "$({program} completion bash)"; complete -p facemill'
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "doctor" in done.stdout and "facemill" in done.stdout
