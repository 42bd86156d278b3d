"""What works on single centres in plain torch: norms, and updates with their tangents.

``losses.head.rows_triton`` has the same in Triton; ``losses.head.tile_torch`` takes these functions in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12  # a norm below it is none


def inverse_norm(weight: Tensor) -> Tensor:
    """(n, d) rows → (n,) inverses of their norms.

    1 for a row that is as good as 0, which has no direction: its cosines are 0, and its gradient is that of products
    with a vector of length 1, not 1e12 times as large.
    """
    norm = torch.linalg.vector_norm(weight, dim=1)
    return torch.where(norm < TINY, 1.0, norm).reciprocal()


def load_centres(weight: Tensor, index: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Some rows (n) of the (C_r, d) float32 centres → (n, d) in ``dtype``, and (n,) inverses of their norms."""
    weight = weight[index]
    return weight.to(dtype), inverse_norm(weight)


def tangent_(gradient: Tensor, weight: Tensor, inv_norm: Tensor) -> Tensor:
    """Take from a gradient (n, d) what would only change the length of its centres (n, d); in place.

    With ŵ = w/‖w‖, d loss/dw = (g - ŵ(ŵ·g)), where g is d_productᵀ·x: the factor 1/‖w‖ is in it (see ``d_product``).
    """
    radial = (gradient * weight).sum(1).mul_(inv_norm.square())
    return gradient.addcmul_(weight, radial[:, None], value=-1)


@dataclass(frozen=True)
class CentreGradient:
    """The gradient of some rows (n) of the shard.

    Attributes:
        index: which rows they are.
        active: (n,) bool, which of them move (the others stay as they are, bit for bit); None for all.
        values: (n, d), overwritten by who applies it. Those of rows that stay may be anything, NaN too.
        inv_norm: (n,) inverse norms of the rows where ``tangent_`` has yet to be applied to the values, or None.
    """

    index: slice | Tensor
    active: Tensor | None
    values: Tensor
    inv_norm: Tensor | None = None


def sgd_(
    state: dict[str, Tensor], gradient: CentreGradient, *, lr: float, momentum: float, weight_decay: float
) -> None:
    """Move the gradient's rows as ``torch.optim.SGD`` does, in place.

    ``state``: ``weight`` and, with momentum, ``momentum``, (C_r, d).
    """
    rows, moving = _rows(state, gradient.index), _Moving(gradient.active)
    weight, step = rows["weight"], _loss_gradient(gradient, rows["weight"])
    moving.add_(step, weight, weight_decay)
    if momentum:
        moving.scale_(rows["momentum"], momentum)
        step = rows["momentum"].add_(step)
    moving.add_(weight, step, -lr)
    _write_back(state, gradient.index, rows)


def adamw_(
    state: dict[str, Tensor],
    gradient: CentreGradient,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """As ``sgd_``, by the rule of ``torch.optim.AdamW``; ``steps`` (C_r, 1) counts for each row."""
    rows, moving = _rows(state, gradient.index), _Moving(gradient.active)
    weight, mean, square = rows["weight"], rows["exp_avg"], rows["exp_avg_sq"]
    g = _loss_gradient(gradient, weight)
    moving.add_(rows["steps"], torch.ones_like(rows["steps"]), 1.0)
    steps = rows["steps"].clamp(min=1)  # of rows that never moved, whose numbers are not used
    moving.scale_(mean, betas[0])
    mean.add_(g, alpha=1 - betas[0])
    moving.scale_(square, betas[1])
    square.addcmul_(g, g, value=1 - betas[1])
    denominator = (square / (1 - betas[1] ** steps)).sqrt_().add_(eps)
    moving.scale_(weight, 1 - lr * weight_decay)
    moving.add_(weight, mean / denominator.mul_(1 - betas[0] ** steps), -lr)
    _write_back(state, gradient.index, rows)


def lion_(
    state: dict[str, Tensor], gradient: CentreGradient, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """As ``sgd_``, by the rule of Lion (Chen et al., 2023, algorithm 2); ``exp_avg`` (C_r, d) is its momentum."""
    rows, moving = _rows(state, gradient.index), _Moving(gradient.active)
    weight, mean = rows["weight"], rows["exp_avg"]
    g = _loss_gradient(gradient, weight)
    direction = mean.lerp(g, 1 - betas[0]).sign_()
    moving.scale_(weight, 1 - lr * weight_decay)
    moving.add_(weight, direction, -lr)
    moving.scale_(mean, betas[1])
    mean.add_(g, alpha=1 - betas[1])
    _write_back(state, gradient.index, rows)


def _loss_gradient(gradient: CentreGradient, weight: Tensor) -> Tensor:
    """The values as the gradient of the loss itself by the rows (n, d), 0 for those that stay; in place."""
    values = gradient.values
    if gradient.active is not None:
        values.masked_fill_(~gradient.active[:, None], 0.0)
    return values if gradient.inv_norm is None else tangent_(values, weight, gradient.inv_norm)


class _Moving:
    """Arithmetic in place on (n, d) numbers of rows of which some may stay; ``active`` as in `CentreGradient`.

    By factors of rows, 0 and 1, instead of copies that are put back: each number is read and written once.
    """

    def __init__(self, active: Tensor | None) -> None:
        self._active = None if active is None else active[:, None]

    def add_(self, numbers: Tensor, others: Tensor, factor: float) -> None:
        """Add ``factor * others``, finite for every row."""
        if self._active is None:
            numbers.add_(others, alpha=factor)
        else:
            numbers.addcmul_(others, self._active.float(), value=factor)

    def scale_(self, numbers: Tensor, factor: float) -> None:
        """Multiply by ``factor``."""
        numbers.mul_(factor if self._active is None else torch.where(self._active, factor, 1.0))


def _rows(state: dict[str, Tensor], index: slice | Tensor) -> dict[str, Tensor]:
    """Some rows (n) of each tensor, to be changed in place: views for a slice, else copies."""
    return {name: tensor[index] for name, tensor in state.items()}


def _write_back(state: dict[str, Tensor], index: slice | Tensor, rows: dict[str, Tensor]) -> None:
    """Put copies of rows back where they came from; views are there already."""
    if isinstance(index, Tensor):
        for name, tensor in state.items():
            tensor[index] = rows[name]
