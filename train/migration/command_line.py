"""AdaFace's runs, which are command lines in shell scripts: read as text and never run."""

import ast
import re
import shlex
from collections import deque
from pathlib import Path
from typing import Any

from pipelines.common.errors import UserError
from train.migration.python_config import PythonConfig, Unread

_PROGRAM = "main.py"
_DEFAULTS = "config.py"  # where the parser of the command line is, beside the program
_KINDS = {"int": int, "float": float, "str": str}


def read_script(path: Path) -> PythonConfig:
    """The options of the one command in a script that runs ``main.py``, and the defaults of the others.

    Defaults come from `parser_file`, as ``argparse`` is told them there; without that file there are none.

    Raises:
        UserError: no command, or several, run ``main.py``, or an option has no value.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    commands = _commands(path, text)
    if len(commands) != 1:
        raise UserError(f"{path} runs {_PROGRAM} {len(commands)} times: keep one command in it")
    options = _options_of(path)
    config = PythonConfig({name: option.default for name, option in options.items()})
    line, words = commands[0]
    _read_words(path, line, words, options, config)
    return config


class _Option:
    """An option of the command line: whether it takes a value, of which kind, and its default."""

    def __init__(self, call: ast.Call) -> None:
        given = {word.arg: word.value for word in call.keywords}
        action, kind, default = (given.get(name) for name in ("action", "type", "default"))
        self.is_switch = isinstance(action, ast.Constant) and action.value in ("store_true", "store_false")
        self.kind = _KINDS.get(ast.unparse(kind), str) if kind else str
        self.default = ast.literal_eval(default) if default else (False if self.is_switch else None)


def parser_file(script: Path) -> Path | None:
    """``config.py`` beside the script or one folder up, which has the options and their defaults."""
    files = (folder / _DEFAULTS for folder in (script.parent, script.parent.parent))
    return next((file for file in files if file.is_file()), None)


def _options_of(path: Path) -> dict[str, _Option]:
    file = parser_file(path)
    if file is None:
        return {}
    try:
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        return dict(_named(call) for call in calls if ast.unparse(call.func).endswith(".add_argument"))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _named(call: ast.Call) -> tuple[str, _Option]:
    name = ast.literal_eval(call.args[0]) if call.args else ""
    return str(name).lstrip("-").replace("-", "_"), _Option(call)


def _commands(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The words of every command that runs the program, with its line."""
    found = []
    joined = re.sub(r"\\\r?\n", lambda match: " \0", text)  # a continued line counts as one; \0 marks where it went on
    number = 1
    for line in joined.splitlines():
        if _PROGRAM in line and not line.lstrip().startswith("#"):
            try:
                words = shlex.split(line.replace("\0", " "), comments=True)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            if any(Path(word).name == _PROGRAM for word in words):
                found.append((number, words))
        number += 1 + line.count("\0")
    return found


def _read_words(path: Path, line: int, words: list[str], options: dict[str, _Option], config: PythonConfig) -> None:
    start = next(place for place, word in enumerate(words) if Path(word).name == _PROGRAM)
    left = deque(words[start + 1 :])
    while left:
        word = left.popleft()
        if not word.startswith("--"):
            raise UserError(f"{path}, line {line}: {word!r} is no option of {_PROGRAM}")
        name, equals, given = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        option = options.get(name)
        # Of an option that is not known, the next word is the value unless it is an option, too.
        is_switch = option.is_switch if option else not equals and (not left or left[0].startswith("--"))
        if not is_switch and not equals:
            given = left.popleft() if left else ""
        if "$" in given or "`" in given:
            config.values.pop(name, None)
            config.unread.append(Unread(path.name, line, f"--{name} {given}", name))
        else:
            config.values[name] = True if is_switch else _value(path, line, name, given, option)


def _value(path: Path, line: int, name: str, given: str, option: _Option | None) -> Any:
    if option is None:
        try:
            return ast.literal_eval(given)
        except (ValueError, SyntaxError):
            return given
    try:
        return option.kind(given)
    except ValueError:
        raise UserError(f"{path}, line {line}: --{name} {given} is no {option.kind.__name__}") from None
