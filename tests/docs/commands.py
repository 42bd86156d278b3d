"""The commands of a Markdown file's fenced blocks, and how the program takes them."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.docs.blocks import ROOT
from train.config import load_config
from train.console import COMMANDS

_FENCE = re.compile(
    r"^(?: *<!-- (?:not run: (?P<reason>[^\n]+)|(?P<afresh>begins afresh)) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MODULE = re.compile(r"(?:^|\s)-m ([\w.]+)")
_CONSOLE = re.compile(r"^facemill ([a-z]+)")
_SCRIPT = re.compile(r"(?:^|\s)(train/run|scripts/slurm)\.(?:py|sh)\b")


class Fence(NamedTuple):
    """A fenced block.

    ``reason`` is what a comment ``<!-- not run: … -->`` right before it says, ``afresh`` whether there is one
    ``<!-- begins afresh -->``: it is for other readers than the commands above it, and knows nothing of them.
    """

    language: str
    code: str
    file: Path
    line: int  # of its first line of code
    reason: str | None
    afresh: bool

    @property
    def lines(self) -> list[tuple[int, str]]:
        """Its lines with their numbers, continued ones joined, without empty ones and comments."""
        parts = re.finditer(r"(?:[^\n]*\\\n)*[^\n]*\n", self.code)
        joined = [(part.start(), re.sub(r"\\\n\s*", " ", part[0]).strip()) for part in parts]
        return [
            (self.line + self.code.count("\n", 0, start), line)
            for start, line in joined
            if line and not line.startswith("#")
        ]


class Command(NamedTuple):
    """A line that starts something of ours, continued lines joined, and where it begins."""

    text: str
    file: Path
    line: int

    @property
    def module(self) -> str:
        """What it starts, as a module's name."""
        if console := _CONSOLE.search(self.text):
            return COMMANDS[console[1]][0]
        if _SCRIPT.search(self.text):
            return "train.run"
        found = _MODULE.search(self.text)
        assert found
        return found[1]

    @property
    def arguments(self) -> list[str]:
        """What stands behind the module's name, without a comment, another command or a redirection."""
        found = _CONSOLE.search(self.text) or _SCRIPT.search(self.text) or _MODULE.search(self.text)
        assert found
        lexer = shlex.shlex(self.text[found.end() :], posix=True, punctuation_chars=";|&>")
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [index for index, word in enumerate(words) if word[0] in ";|&>"]
        return words[: ends[0]] if ends else words

    @property
    def main(self) -> Callable[[], None]:
        """What it calls."""
        package = (ROOT / self.module.replace(".", "/") / "__main__.py").is_file()
        return import_module(f"{self.module}.__main__" if package else self.module).main


class _Parsed(Exception):
    """A command line that was taken."""


def fences(file: Path) -> list[Fence]:
    """All fenced blocks, in order."""
    text, found = file.read_text(), []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Fence(match["language"], match["code"], file, line, match["reason"], bool(match["afresh"])))
    return found


def commands(file: Path) -> list[Command]:
    """All of ours, in order: python -m of a room, train/run.py, scripts/slurm.sh, facemill."""
    lines = [line for fence in fences(file) if fence.language == "bash" for line in fence.lines]
    return [Command(line, file, number) for number, line in lines if is_ours(line)]


def is_ours(line: str) -> bool:
    """Whether a line starts something of ours."""
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    module = _MODULE.search(line)
    return bool(_CONSOLE.search(line) or _SCRIPT.search(line) or module and module[1].split(".")[0] in rooms)


def take(command: Command) -> None:
    """Let the program parse the command line, and nothing more. Raises ``AssertionError`` where it does not."""
    words = command.arguments
    if {"...", "…"} & {*words}:  # a config of one's own, and what else one says
        words = ["--config", "configs/quickstart.yaml", *(word for word in words if "=" in word)]
    with mock.patch.object(sys, "argv", [command.module, *words]), _parsing_only():
        try:
            command.main()
            raise AssertionError(f"{command.module} parses no command line")
        except _Parsed as parsed:
            (arguments,) = parsed.args
        except SystemExit as end:
            assert end.code == 0, (
                f"{command.file.name}:{command.line}: {command.text} is not taken"
            )  # --help ends with 0
            return
    if command.module == "train.run" and (ROOT / arguments.config).is_file():
        load_config(ROOT / arguments.config, arguments.overrides)


def _parsing_only() -> AbstractContextManager[object]:
    """Programs end as soon as they have parsed their command lines."""

    def ending(parse: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def parse_only(*arguments: object) -> argparse.Namespace:
            raise _Parsed(parse(*arguments))

        return parse_only

    names = "parse_args", "parse_intermixed_args"
    found = {name: ending(getattr(argparse.ArgumentParser, name)) for name in names}
    return mock.patch.multiple(argparse.ArgumentParser, **found)


if __name__ == "__main__":  # python -m tests.docs.commands FILE …: list them
    for name in sys.argv[1:]:
        for one in commands(Path(name)):
            print(one.line, one.module, one.arguments)
