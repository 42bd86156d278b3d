"""What works on single centres in Triton: norms, and updates with their tangents; each number is read and written once.

A program works on one centre. For the rest see ``losses.head.tile_triton``, which takes these functions in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.head.rows_torch import TINY, CentreGradient


@triton.jit
def _row(index, first):
    """Which row of the tile is this program's, and which of the shard."""
    place = tl.program_id(0).to(tl.int64)
    if index is not None:
        return place, tl.load(index + place)
    return place, first + place


@triton.jit
def _load_centres(weight, centres, inv_norm, index, first, SIZE: tl.constexpr, BLOCK: tl.constexpr, TINY: tl.constexpr):
    place, row = _row(index, first)
    at = tl.arange(0, BLOCK)
    values = tl.load(weight + row * SIZE + at, mask=at < SIZE, other=0.0)
    tl.store(centres + place * SIZE + at, values.to(centres.dtype.element_ty), mask=at < SIZE)
    norm = tl.sqrt(tl.sum(values * values))
    tl.store(inv_norm + place, 1 / tl.where(norm < TINY, 1.0, norm))


@triton.jit
def _centre(weight, gradient, inv_norm, index, active, first, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the numbers of this program's centre are, which of them move, and (BLOCK,) they and d loss / d them."""
    place, row = _row(index, first)
    within = tl.arange(0, BLOCK)
    at, mask = row * SIZE + within, within < SIZE
    if active is not None:
        mask = mask & (tl.load(active + place) != 0)
    w = tl.load(weight + at, mask=mask, other=0.0)
    g = tl.load(gradient + place * SIZE + within, mask=mask, other=0.0)
    if inv_norm is not None:
        inv_norm = tl.load(inv_norm + place)
        g -= w * (tl.sum(g * w) * inv_norm * inv_norm)
    return at, mask, w, g


@triton.jit
def _sgd(
    weight, momentum, gradient, inv_norm, index, active, first, lr, beta, decay,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask, w, g = _centre(weight, gradient, inv_norm, index, active, first, SIZE, BLOCK)
    step = g + decay * w
    if momentum is not None:
        step += beta * tl.load(momentum + at, mask=mask, other=0.0)
        tl.store(momentum + at, step, mask=mask)
    tl.store(weight + at, w - lr * step, mask=mask)


@triton.jit
def _adamw(
    weight, mean, square, steps, gradient, inv_norm, index, active, first, lr, beta1, beta2, eps, decay,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask, w, g = _centre(weight, gradient, inv_norm, index, active, first, SIZE, BLOCK)
    m = beta1 * tl.load(mean + at, mask=mask, other=0.0) + (1 - beta1) * g
    v = beta2 * tl.load(square + at, mask=mask, other=0.0) + (1 - beta2) * g * g
    steps += _row(index, first)[1]
    count = tl.load(steps) + 1
    unbias1, unbias2 = 1 - tl.exp(count * tl.log(beta1)), 1 - tl.exp(count * tl.log(beta2))
    w = w * (1 - lr * decay) - lr * (m / unbias1) / (tl.sqrt(v / unbias2) + eps)
    tl.store(mean + at, m, mask=mask)
    tl.store(square + at, v, mask=mask)
    tl.store(weight + at, w, mask=mask)
    tl.store(steps, count, mask=tl.sum(mask.to(tl.int32)) > 0)


@triton.jit
def _lion(
    weight, mean, gradient, inv_norm, index, active, first, lr, beta1, beta2, decay,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask, w, g = _centre(weight, gradient, inv_norm, index, active, first, SIZE, BLOCK)
    m = tl.load(mean + at, mask=mask, other=0.0)
    direction = beta1 * m + (1 - beta1) * g
    sign = (direction > 0).to(tl.float32) - (direction < 0).to(tl.float32)
    tl.store(mean + at, beta2 * m + (1 - beta2) * g, mask=mask)
    tl.store(weight + at, w * (1 - lr * decay) - lr * sign, mask=mask)


def load_centres(weight: Tensor, index: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``rows_torch.load_centres``."""
    size, count = weight.shape[1], len(index) if isinstance(index, Tensor) else index.stop - index.start
    centres = torch.empty(count, size, dtype=dtype, device=weight.device)
    inv_norm = torch.empty(count, device=weight.device)
    _load_centres[(count,)](
        weight, centres, inv_norm, *_index_or_first(index), SIZE=size, BLOCK=_width(size), TINY=TINY
    )
    return centres, inv_norm


def sgd_(
    state: dict[str, Tensor], gradient: CentreGradient, *, lr: float, momentum: float, weight_decay: float
) -> None:
    """See ``rows_torch.sgd_``."""
    count, size = gradient.values.shape
    _sgd[(count,)](
        state["weight"], state.get("momentum"), *_arguments(gradient),
        lr, momentum, weight_decay, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def adamw_(
    state: dict[str, Tensor], gradient: CentreGradient,
    *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """See ``rows_torch.adamw_``."""
    count, size = gradient.values.shape
    _adamw[(count,)](
        *(state[name] for name in ("weight", "exp_avg", "exp_avg_sq", "steps")), *_arguments(gradient),
        lr, *betas, eps, weight_decay, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def lion_(
    state: dict[str, Tensor], gradient: CentreGradient, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """See ``rows_torch.lion_``."""
    count, size = gradient.values.shape
    _lion[(count,)](
        state["weight"], state["exp_avg"], *_arguments(gradient),
        lr, *betas, weight_decay, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def _arguments(gradient: CentreGradient) -> tuple[Tensor | int | None, ...]:
    """What the kernels call gradient, inv_norm, index, active and first."""
    index, first = _index_or_first(gradient.index)
    return gradient.values, gradient.inv_norm, index, gradient.active, first


def _index_or_first(index: slice | Tensor) -> tuple[Tensor | None, int]:
    """(row numbers, 0), or for a slice (None, its first row)."""
    return (None, index.start or 0) if isinstance(index, slice) else (index, 0)


def _width(size: int) -> int:
    """A row in one piece."""
    return triton.next_power_of_2(size)
