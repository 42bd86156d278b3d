"""The arithmetic of one tile of class centres in plain torch: the readable reference, and what runs on a CPU.

``losses.head.tile_triton`` has ``load_centres``, ``class_sums``, ``d_product``, ``sgd_``, ``adamw_`` and ``lion_``,
with the same arguments, in Triton. What works on single centres is in ``losses.head.rows_torch``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.head.rows_torch import adamw_, lion_, load_centres, sgd_
from losses.margins.margin import BatchView, Margin

__all__ = [
    "LOWEST",
    "Tile",
    "adamw_",
    "class_sums",
    "d_product",
    "lion_",
    "load_centres",
    "product",
    "rebase_",
    "sgd_",
    "shifted",
    "softmax_entropy",
]

LOWEST = -1e38  # below every logit, and no row's maximum counts as less


@dataclass
class Tile:
    """Some centres of the shard.

    Attributes:
        first: place of the first one in the pass.
        index: which rows of the shard they are.
        active: (n,) bool, false for rows that do not take part; None if all do.
        centres: (n, d) the centres in the type of the products.
        inv_norm: (n,) float32 inverses of their norms.
        kept: what ``class_sums`` left for ``d_product``, or None.
        top: what ``class_sums`` took from the logits before exp: (B,) float32, each row's largest, where ``shifted``.
    """

    first: int
    index: slice | Tensor
    active: Tensor | None
    centres: Tensor
    inv_norm: Tensor
    kept: Tensor | None = None
    top: Tensor | float = 0.0

    def __len__(self) -> int:
        return len(self.centres)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, of operands of their own type."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu":  # which has no kernel for it
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def shifted(margin: Margin, entropy: bool) -> bool:
    """Whether the sums are of logits above their row's largest.

    That keeps exponentials inside float32. An entropy is then a sum of numbers that are not negative; above any other
    base it is a difference of two that may be as large as the logits.
    """
    return margin.reduction == "logsumexp" and (margin.shifted or entropy)


def class_sums(
    x: Tensor,
    tile: Tile,
    target_column: Tensor,
    margin: Margin,
    batch: BatchView,
    entropy: bool,
    keep: bool = False,
) -> Tensor:
    """Over the classes of the tile but each row's own; where ``shifted`` it sets ``tile.top``.

    Args:
        x: (B, d) unit embeddings in the type of the products.
        target_column: (B,) int64, place of each row's own class in the tile; outside [0, n) where it is not there.
        keep: whether to leave the terms' derivatives in ``tile.kept``, but for factors of a row (Triton keeps nothing).

    Returns:
        For ``logsumexp`` (1, B) Σ exp(other - top), with ``entropy`` (2, B): Σ exp(other - top)·(other - top) below it.
        For ``softplus`` (2, B) Σ softplus(other - bias) and Σ sigmoid(other - bias).
    """
    logits, slope = _logits(x, tile, margin, batch, batch.bias, sloped=keep)
    # What does not count gets a logit whose exponential is 0 above any top.
    column, inside = _target_cells(tile, target_column)
    logits.scatter_(1, column, logits.gather(1, column).masked_fill_(inside, 2 * LOWEST))
    if tile.active is not None:
        logits.masked_fill_(~tile.active, 2 * LOWEST)
    if margin.reduction == "softplus":
        total = F.softplus(logits).sum(1)
        derivative = logits.sigmoid_()
        sums = [total, derivative.sum(1)]
    else:
        if shifted(margin, entropy):
            tile.top = logits.amax(1).clamp_(min=LOWEST)
            logits.sub_(tile.top[:, None])
        # Unless the entropy needs the logits, exp takes their memory, and nothing below may read them.
        derivative = logits.exp() if entropy else logits.exp_()
        sums = [derivative.sum(1), logits.mul_(derivative).sum(1)] if entropy else [derivative.sum(1)]
    if keep:
        tile.kept = derivative.mul_(slope) if isinstance(slope, Tensor) else derivative
    return torch.stack(sums)


def rebase_(sums: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Sums of exponentials above ``old`` (…, B) as such above ``new``; see ``class_sums``. (1 or 2, …, B), in place."""
    lift = old - new
    if len(sums) > 1:
        sums[1].addcmul_(lift, sums[0])
    return sums.mul_(lift.exp())


def softmax_entropy(total: Tensor, moment: Tensor) -> Tensor:
    """(B,) Σ exp(l) and Σ exp(l)·l over a row's logits above their largest → (B,) log Σ exp(l) - Σ softmax(l)·l."""
    total = total.clamp(min=torch.finfo(total.dtype).tiny)
    return total.log() - moment / total


def d_product(
    x: Tensor,
    tile: Tile,
    target_column: Tensor,
    margin: Margin,
    batch: BatchView,
    reduced: Tensor,
    d_reduced: Tensor,
    d_cos_y: Tensor,
) -> Tensor:
    """d loss / d (x @ centresᵀ): (B, n) in the type of the products.

    What ``class_sums`` left in ``tile.kept`` is used up; without it the logits are computed again.

    Args:
        reduced: (B,) the reduction over all classes but the own one; a log-sum-exp is inf where there are none.
        d_reduced, d_cos_y: (B,) d loss / d reduced and d loss / d cosine to the own centre.
    """
    softplus = margin.reduction == "softplus"
    if tile.kept is not None:
        factor = d_reduced * (margin.s if margin.linear else 1.0)
        if not softplus:
            factor = (tile.top - reduced).exp() * factor
        d_cos, tile.kept = tile.kept.mul_(factor[:, None]), None
    else:
        logits, slope = _logits(x, tile, margin, batch, batch.bias if softplus else reduced, sloped=True)
        d_cos = (logits.sigmoid_() if softplus else logits.exp_()).mul_(d_reduced[:, None] * slope)
        if tile.active is not None:
            d_cos.masked_fill_(~tile.active, 0.0)  # its logit is in no sum, so its exponential may be infinite
    # A row's own cell holds d_cos_y, whatever was computed there; every other cell keeps its number: rows whose class
    # lies elsewhere write back what they read.
    column, inside = _target_cells(tile, target_column)
    d_cos.scatter_(1, column, torch.where(inside, d_cos_y[:, None], d_cos.gather(1, column)))
    return d_cos.mul_(tile.inv_norm).to(x.dtype)


def _target_cells(tile: Tile, target_column: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1) a column of the tile for each row, and (B, 1) whether it is that of its own class."""
    column = target_column[:, None]
    return column.clamp(0, len(tile) - 1), (column >= 0) & (column < len(tile))


def _logits(
    x: Tensor, tile: Tile, margin: Margin, batch: BatchView, base: Tensor | None, sloped: bool
) -> tuple[Tensor, Tensor | float]:
    """(B, n) logits of a tile, above ``base`` (B,) or () if given, and their derivative by the cosine if ``sloped``."""
    cos = product(x, tile.centres.T)
    if margin.linear:
        if base is None:
            return cos.mul_(margin.s * tile.inv_norm), margin.s
        return torch.addcmul(-base.view(-1, 1), cos, tile.inv_norm, value=margin.s, out=cos), margin.s
    cos.mul_(tile.inv_norm)
    slope = margin.slope(cos, batch) if sloped else 0.0  # first: the logits may be ``cos`` itself, changed in place
    logits = margin.others(cos, batch)
    return logits if base is None else logits.sub_(base.view(-1, 1)), slope
