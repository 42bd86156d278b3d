"""How far a command is, while it works: a bar in a terminal, elsewhere a line a minute."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.common.errors import escaped

Batch = TypeVar("Batch", bound=Sized)
_SECONDS = 60.0  # from line to line


def with_progress(batches: Iterable[Batch], text: str, total: int) -> Generator[Batch, None, None]:
    """Pass batches on and show how many of the ``total`` there were, the one that is passed on among them."""
    # The stream of now: batches whose taker has failed end late, when `only_json` has put the other one back.
    console = Console(file=sys.stdout)
    with (_bar if console.is_interactive else _lines)(console, escaped(text), total) as advance:
        for batch in batches:
            advance(len(batch))
            yield batch


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextmanager
def _bar(console: Console, text: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _lines(console: Console, text: str, total: int) -> Iterator[Callable[[int], None]]:
    start = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal told, done
        done += count
        now = time.monotonic()
        if now - told >= _SECONDS:
            told = now
            left = (now - start) * (total / done - 1)
            print(f"{text}: {done:,} of {total:,}, {duration(left)} left", file=console.file, flush=True)

    try:
        yield advance
    finally:
        seconds = time.monotonic() - start
        print(f"{text}: {done:,} of {total:,} in {duration(seconds)}", file=console.file, flush=True)
