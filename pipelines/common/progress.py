"""How far a command is, while it works."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Batch = TypeVar("Batch", bound=Sized)


def with_progress(batches: Iterable[Batch], text: str, total: int) -> Iterator[Batch]:
    """Pass batches on and show how many of the ``total`` there were."""
    columns = TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))
