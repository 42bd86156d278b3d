"""What a run tells: a progress line for people, and a record a log step for the sinks: files, curves, trackers."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from pipelines.common.errors import UserError, escaped
from pipelines.common.files import naming, replacing
from pipelines.common.progress import duration
from train.step_folders import latest_step
from train.trackers import MLflow, WeightsAndBiases


class Sink(Protocol):
    """Where a run's figures go. It is made with the run's folder, on rank 0 only."""

    def log(self, record: dict[str, Any]) -> None:
        """Take the figures of a log step or a verification: a flat dict of numbers with ``step``.

        The loss is None where none was finite since the last.
        """

    def close(self) -> None:
        """Let nothing be lost. It is called on every way out of a run."""


@runtime_checkable
class PictureSink(Sink, Protocol):
    """A sink that takes pictures, too."""

    def show(self, name: str, step: int, picture: Image.Image) -> None:
        """Take a picture in RGB, such as ``batch`` or ``worst/lfw``."""


class JsonLines:
    """``log.jsonl``, an object a line. A resumed run drops the lines past the step from which it goes on."""

    def __init__(self, folder: Path) -> None:
        path = folder / "log.jsonl"
        _keep_until(path, latest_step(folder / "checkpoints"))
        self._file = path.open("ab", buffering=0)

    def log(self, record: dict[str, Any]) -> None:
        """Write a line, at once."""
        with naming(self._file.name):
            self._file.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The folder ``tensorboard``, a curve for each figure that is a float."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        last = latest_step(folder / "checkpoints")  # of what stays; the next one and all that follow are dropped
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=last + 1)

    def log(self, record: dict[str, Any]) -> None:
        """Add a point to each curve, at once: a kill would lose what waits in memory, also from before a checkpoint."""
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def show(self, name: str, step: int, picture: Image.Image) -> None:
        """Add a picture, at once."""
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


SINKS: dict[str, Callable[[Path], Sink]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def step_line(record: dict[str, Any], total_steps: int, seconds_left: float) -> str:
    """A log step's figures for people."""
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    parts = [
        f"epoch {record['epoch']:.2f}",
        f"step {record['step']}/{total_steps}",
        f"loss {loss}",
        f"lr {record['lr']:.4g}",
        f"{record['images_per_second']:.0f} images/s",
        f"waiting {record['data_wait']:.1%}",
    ]
    if "skipped_steps" in record:
        parts.append(f"{record['skipped_steps']} steps left out")
    return "  ".join([*parts, f"ETA {duration(seconds_left)}"])


class RunLog:
    """The terminal, with a progress line where it is one, and the ``sinks`` (names of `SINKS`) of a run.

    Those of them that are among ``pictures`` get pictures, too; ``UserError`` where one takes none.
    """

    def __init__(
        self, folder: Path, total_steps: int, start_step: int, sinks: Sequence[str], pictures: Sequence[str] = ()
    ) -> None:
        self.console = Console(markup=False, emoji=False, highlight=False)  # names print as they are
        self._sinks: list[Sink] = []
        self._picture_sinks: list[PictureSink] = []
        self._progress = None
        with ExitStack() as opened:
            for name in sinks:
                sink = SINKS[name](folder)
                self._sinks.append(sink)
                opened.callback(sink.close)
                if name in pictures:
                    if not isinstance(sink, PictureSink):
                        raise UserError(f"log.pictures: {name} takes no pictures")
                    self._picture_sinks.append(sink)
            if self.console.is_interactive:
                columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
                self._progress = opened.enter_context(Progress(*columns, console=self.console))
                self._task = self._progress.add_task("starting", total=total_steps, completed=start_step)
            self._opened = opened.pop_all()

    def step(self, record: dict[str, Any], line: str) -> None:
        """Note a log step: ``record`` (with ``step``) for the sinks, ``line`` for the terminal."""
        self._log(record)
        if self._progress:
            self._progress.update(self._task, completed=record["step"], description=line)
        else:
            self.say(line)

    def verified(self, step: int, accuracies: Mapping[str, float], seconds: float) -> None:
        """Note a verification, whose accuracies are in [0, 1] by set."""
        figures = {f"verify/{name}": accuracy for name, accuracy in accuracies.items()}
        self._log({"step": step, "verify_seconds": seconds} | figures)
        text = "  ".join(f"{name} {accuracy:.2%}" for name, accuracy in accuracies.items())
        self.say(f"verified at step {step}: {text}  ({seconds:.1f} s)")

    def show(self, name: str, step: int, draw: Callable[[], Image.Image]) -> None:
        """Give the sinks that take pictures one, which is drawn only if there are any."""
        if self._picture_sinks:
            picture = draw()
            for sink in self._picture_sinks:
                sink.show(name, step, picture)

    def _log(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(record)

    def say(self, line: str | Table) -> None:
        """Print a line, in which names of files may stand, or a table."""
        self.console.print(escaped(line) if isinstance(line, str) else line, soft_wrap=True)

    def close(self) -> None:
        """Finish the progress line and close every sink, whatever another one raises."""
        self._opened.close()


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
    with replacing(path) as temporary:
        temporary.write_text("".join(kept))
