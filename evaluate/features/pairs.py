"""``.bin`` sets as verification needs them."""

from pathlib import Path

from evaluate.protocols.folds import FOLDS
from pipelines.common.errors import UserError
from pipelines.sources.bins import BinSet, read_bin


def read_pairs(path: Path) -> BinSet:
    """A ``.bin`` set that has pairs enough for the protocol; a ``ValueError`` names the file if not."""
    pairs = read_bin(path)
    if len(pairs.same) < FOLDS:
        raise UserError(
            f"{path} has {len(pairs.same)} pairs, too few: the protocol needs {FOLDS} folds of at least one"
        )
    return pairs
