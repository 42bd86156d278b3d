"""What a run tells: a progress line for people, one JSON object a log step for programs, TensorBoard for curves."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class RunLog:
    """Logs of a run in its folder: ``log.jsonl``, ``tensorboard/``, and the terminal.

    A resumed run goes on in the same files: lines past the position it resumes from are dropped first.
    """

    def __init__(self, folder: Path, total_steps: int, start_step: int, tensorboard: bool) -> None:
        self.console = Console(markup=False, emoji=False, highlight=False)  # names print as they are
        self.total = total_steps
        path = folder / "log.jsonl"
        _keep_until(path, start_step)
        self._file = path.open("a", buffering=1)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=start_step if start_step else None)
        self._progress = None
        if self.console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task("starting", total=total_steps, completed=start_step)
            self._progress.start()

    def step(self, record: dict[str, Any], line: str) -> None:
        """Note a log step: ``record`` (with ``step``) for the files, ``line`` for the terminal."""
        self._file.write(json.dumps(record) + "\n")
        self._curves(record)
        if self._progress:
            self._progress.update(self._task, completed=record["step"], description=line)
        else:
            self.console.print(line, soft_wrap=True)

    def event(self, record: dict[str, Any], line: str) -> None:
        """Note something that is no training step, such as a verification."""
        self._file.write(json.dumps(record) + "\n")
        self._curves(record)
        self.say(line)

    def _curves(self, record: dict[str, Any]) -> None:
        if self._board:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, record["step"])

    def say(self, line: str | Table) -> None:
        """Print a line or a table."""
        self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Finish the progress line and the files."""
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop lines past ``step``, those of its verification, which comes again, and a last one that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["step"] < step or (record["step"] == step and "loss" in record):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    partial.replace(path)
