"""A run of another trainer: its config with what that stands on, and which trainer it is."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import UserError, unknown
from train.migration import adaface, arcface_torch
from train.migration.command_line import parser_file, read_script
from train.migration.python_config import PythonConfig, read_config
from train.migration.translation import Became, Row, translate

TRAINERS = (*arcface_torch.PROJECTS, "adaface")
# Files that only one of arcface_torch's kin has, beside its folder of configs.
_MARKS = {"GUM.py": "topofr", "FFT.py": "transface"}
_PUBLISHED_POWER = 2.0


@dataclass
class Theirs:
    """A config of another trainer.

    Attributes:
        trainer: one of `TRAINERS`.
        config: its values, the base file's where it sets none itself.
        power: exponent of its learning rate's polynomial; ``why`` says how that is known.
    """

    path: Path
    trainer: str
    config: PythonConfig
    power: float
    why: str

    def rows(self) -> list[Row]:
        """What each of its keys becomes, and what its code does beside them. Raises ``UserError``."""
        if self.trainer == "adaface":
            rows = translate(self.config, adaface.ADAFACE) + adaface.of_their_code()
            if parser_file(self.path) is None:
                note = "not beside the script: an option that is not given has the default of the published one"
                rows.append(Row("config.py", None, Became({}, note)))
            return rows
        rules = arcface_torch.PROJECTS[self.trainer]
        values = self.config.values
        rows = translate(self.config, rules) + arcface_torch.of_their_code(self.trainer, values, self.power, self.why)
        if not _base(self.path).is_file():
            note = "not beside the config: what is set there only has the defaults here"
            rows.append(Row("base.py", None, Became({}, note)))
        return rows


def read_theirs(path: Path, trainer: str | None = None) -> Theirs:
    """Read a config: a module of arcface_torch's kind, or a script that runs AdaFace.

    Args:
        trainer: one of `TRAINERS`; None tells it from the file and from what lies around it.

    Raises:
        UserError: it cannot be read, or sets nothing.
        OSError: it, or a file that it stands on, is not there.
    """
    if trainer is not None and trainer not in TRAINERS:
        raise unknown("trainer", trainer, TRAINERS)
    if path.suffix == ".sh" or trainer == "adaface":
        config = _over(PythonConfig(adaface.DEFAULTS), read_script(path))
        return Theirs(path, "adaface", config, _PUBLISHED_POWER, "")
    config = read_config(path)
    if _base(path).is_file():
        config = _over(read_config(_base(path)), config)
    if not config.values:
        raise UserError(f"{path} sets nothing: a config of arcface_torch has lines such as config.lr = 0.1")
    config.values["output"] = config.values.get("output") or f"work_dirs/{path.stem}"
    checkout = path.resolve().parent.parent
    trainer = trainer or next((name for file, name in _MARKS.items() if (checkout / file).exists()), "arcface_torch")
    if trainer != "arcface_torch" and "gradient_acc" in config.values:
        config.values["gradient_acc"] = 1  # for the others never read it
    return Theirs(path, trainer, config, *_power(checkout))


def _base(path: Path) -> Path:
    return path.with_name("base.py")


def _over(base: PythonConfig, own: PythonConfig) -> PythonConfig:
    """Both as one: ``base``'s where ``own`` does not set a key, neither by a line that is not understood."""
    unread = {line.key for line in own.unread}
    values = {key: value for key, value in base.values.items() if key not in unread} | own.values
    return PythonConfig(values, [line for line in base.unread if line.key not in own.values] + own.unread)


def _power(checkout: Path) -> tuple[float, str]:
    """The exponent of the learning rate that the code beside the configs has, and how that is known."""
    file = checkout / "lr_scheduler.py"
    if file.is_file():
        try:
            powers = list(_powers(ast.parse(file.read_text())))
        except (SyntaxError, ValueError, RecursionError):
            powers = []
        if powers:
            more = (
                ""
                if powers[0] == _PUBLISHED_POWER
                else f"; the published figures were trained with {_PUBLISHED_POWER:g}"
            )
            return powers[0], f"as in {file.name} beside the configs{more}"
    return _PUBLISHED_POWER, "as the published runs; their code has 1 since April 2023: schedule.power=1 is that"


def _powers(tree: ast.Module) -> Iterator[float]:
    """What an argument ``power`` defaults to, or ``self.power`` is set to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            given = [
                *zip(node.args.args[::-1], node.args.defaults[::-1]),
                *zip(node.args.kwonlyargs, node.args.kw_defaults),
            ]
            found = [value for argument, value in given if argument.arg == "power"]
        elif isinstance(node, ast.Assign):
            found = [node.value for target in node.targets if ast.unparse(target) == "self.power"]
        else:
            continue
        yield from (float(v.value) for v in found if isinstance(v, ast.Constant) and isinstance(v.value, int | float))
