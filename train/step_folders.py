"""The folders that a run's checkpoints lie in, by their names: ``step_000000123`` is that of step 123."""

import re
from pathlib import Path

_NAME = re.compile(r"step_\d{9}")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in ``folder``."""
    return folder / f"step_{step:09d}"


def is_step_folder(path: Path) -> bool:
    """Whether a checkpoint may have this name."""
    return _NAME.fullmatch(path.name) is not None


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_step_folder(path) and (path / "meta.json").exists())


def latest_step(folder: Path) -> int:
    """The step from which a run with this folder of checkpoints goes on: that of its newest one, or 0."""
    found = complete(folder)
    return int(found[-1].name.removeprefix("step_")) if found else 0
