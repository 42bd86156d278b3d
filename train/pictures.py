"""Pictures of a run for its sinks: the first batch as the network gets it, the pairs that it gets most wrong."""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate.protocols.folds import VerificationResult, worst_pairs
from pipelines.common.pixels import to_levels
from pipelines.common.sheets import sheet
from pipelines.loading.batch import Batch

_ROWS, _COLUMNS = 6, 12


def showing_first(batches: Iterator[Batch], show: Callable[[Tensor], None]) -> Iterator[Batch]:
    """The batches as they come; ``show`` gets the images of the first."""
    batch = next(batches)
    show(batch.images)
    yield batch
    del batch  # a generator would hold it, and a device's memory with it, to its end
    yield from batches


def batch_sheet(images: Tensor) -> Image.Image:
    """Images (b, 3, h, w) in [-1, 1], on any device, in rows: the first 72 of them."""
    some = images[: _ROWS * _COLUMNS].detach().cpu()
    pixels = to_levels(some).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = [list(pixels[first : first + _COLUMNS]) for first in range(0, len(pixels), _COLUMNS)]
    return sheet(rows, side=images.shape[-1])


def worst_picture(result: VerificationResult, same: np.ndarray, encoded: Sequence[np.ndarray]) -> Image.Image:
    """The pairs of a set that are judged worst; ``same`` (P,), ``encoded`` (2P,)."""
    from evaluate.reporting.pictures import worst_sheet  # matplotlib takes its time to import

    written = io.BytesIO()
    worst_sheet(worst_pairs(result, same), result.distances, encoded).savefig(written, format="png", dpi=100)
    return Image.open(written).convert("RGB")
