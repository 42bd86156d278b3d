"""The features of many images, gathered from a network's batches to pieces that are files of their own."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor


def in_pieces(features: Iterator[Tensor], lengths: Sequence[int], *, show: bool) -> Iterator[np.ndarray]:
    """Join batches of features (b, v, d) to pieces float32 (length, v, d) of these ``lengths``, one after the other.

    No batch reaches over the end of a piece. ``show``: whether a progress bar is drawn.
    """
    columns = TextColumn("images of this rank"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not show) as progress:
        task = progress.add_task("", total=sum(lengths))
        for length in lengths:
            rows: list[np.ndarray] = []
            while sum(map(len, rows)) < length:
                rows.append(next(features).cpu().numpy())
                progress.advance(task, len(rows[-1]))
            yield np.concatenate(rows)
