"""The arithmetic of one tile of class centres in Triton: functions of ``losses.head.tile_torch`` as fused kernels.

A product of embeddings and centres leaves the tensor cores as what becomes of it: sums of exponentials in the forward
pass, the gradient of the cosines (in half precision) in the backward pass. The (B, n) float32 logits do not exist. What
works on rows (norms, tangents, updates) reads and writes each number once.

In a kernel an argument's name stands for the pointer until it is loaded, and from then on for the value. A program
computes one BLOCK x BLOCK part of the products (rows: the batch's, columns: the tile's centres), or works on one
centre. Tensors are contiguous, and an argument that is None is left out when the kernel is compiled.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.head.tile_torch import LOWEST, TINY, Tile, rebase_
from losses.margins.margin import BatchView, Margin
from pipelines.common.errors import UserError

# A block of products: 128 x 128, in steps of 128 bytes along d. Three steps in flight take 96 KiB of shared memory,
# which every architecture since Ampere has.
_BLOCK, _STEP_BYTES, _STAGES, _WARPS = 128, 128, 3, 8


@triton.jit
def _cosines(x, centres, inv_norm, rows, count, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """(BLOCK,) rows and columns of this program, their (BLOCK, BLOCK) cosines, and (BLOCK,) the centres' inverse norms.

    Programs that follow each other share their centres.
    """
    blocks = tl.cdiv(rows, BLOCK)
    within, first = tl.arange(0, BLOCK), (tl.program_id(0) // blocks) * BLOCK
    row, column = (tl.program_id(0) % blocks) * BLOCK + within, first + within
    # Past the last row or column the last one is read again; nobody asks for those products.
    at = tl.arange(0, STEP)
    x += tl.minimum(row, rows - 1)[:, None] * SIZE + at
    centres += first.to(tl.int64) * SIZE
    centres += tl.minimum(within, count - 1 - first) * SIZE + at[:, None]
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, SIZE, STEP):
        if SIZE % STEP == 0:
            a, b = tl.load(x + start), tl.load(centres + start)
        else:
            inside = start + at < SIZE
            a = tl.load(x + start, mask=inside, other=0.0)
            b = tl.load(centres + start, mask=inside[:, None], other=0.0)
        products = tl.dot(a, b, products, input_precision="ieee")
    inv_norm = tl.load(inv_norm + column, mask=column < count, other=0.0)
    return row, column, products * inv_norm, inv_norm


@triton.jit
def _others(cosines, s, limit, coefficients, filter, row, inside):
    """(BLOCK, BLOCK) logits of other classes and their slopes; see ``Margin.others``."""
    value, slope = cosines, 1.0
    if limit is not None:
        hard = cosines > tl.load(limit + row, mask=inside, other=0.0)[:, None]
        a, b, e = tl.load(coefficients), tl.load(coefficients + 1), tl.load(coefficients + 2)
        value = tl.where(hard, (a * cosines + b) * cosines + e, cosines)
        slope = tl.where(hard, 2 * a * cosines + b, 1.0)
    if filter is not None:
        value = tl.where(cosines > filter, 0.0, value)
        slope = tl.where(cosines > filter, 0.0, slope)
    return s * value, s * slope


@triton.jit
def _exp_sums(
    x, centres, inv_norm, target_column, active, tops, sums, s, limit, coefficients, filter, rows, count,
    ENTROPY: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    row, column, cosines, _ = _cosines(x, centres, inv_norm, rows, count, SIZE, BLOCK, STEP)
    logits, _ = _others(cosines, s, limit, coefficients, filter, row, row < rows)
    target_column = tl.load(target_column + row, mask=row < rows, other=-1)
    counts = (column < count) & (target_column[:, None] != column)
    if active is not None:
        counts = counts & (tl.load(active + column, mask=column < count, other=0) != 0)
    # Each block of columns has a row of its own in ``sums``: added up afterwards, the result is the same every time.
    block, blocks = tl.program_id(0) // tl.cdiv(rows, BLOCK), tl.cdiv(count, BLOCK)
    logits = tl.where(counts, logits, 2 * LOWEST)  # whose exponential is 0 above any top
    if tops is not None:
        top = tl.maximum(tl.max(logits, 1), LOWEST)
        tl.store(tops + block * rows + row, top, mask=row < rows)
        logits -= top[:, None]
    exp = tl.exp(logits)
    tl.store(sums + block * rows + row, tl.sum(exp, 1), mask=row < rows)
    if ENTROPY:
        tl.store(sums + (blocks + block) * rows + row, tl.sum(exp * logits, 1), mask=row < rows)


@triton.jit
def _d_product(
    x, centres, inv_norm, target_column, active, lse, d_lse, d_cos_y, out, s, limit, coefficients, filter, rows, count,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row, column, cosines, inv_norm = _cosines(x, centres, inv_norm, rows, count, SIZE, BLOCK, STEP)
    inside = row < rows
    lse = tl.load(lse + row, mask=inside, other=0.0)
    d_lse = tl.load(d_lse + row, mask=inside, other=0.0)
    target_column = tl.load(target_column + row, mask=inside, other=-1)
    d_cos_y = tl.load(d_cos_y + row, mask=inside, other=0.0)
    logits, slope = _others(cosines, s, limit, coefficients, filter, row, inside)
    d_cos = tl.exp(logits - lse[:, None]) * d_lse[:, None] * slope
    if active is not None:
        d_cos = tl.where(tl.load(active + column, mask=column < count, other=0) != 0, d_cos, 0.0)
    d_cos = tl.where(target_column[:, None] == column, d_cos_y[:, None], d_cos) * inv_norm
    at = out + row[:, None].to(tl.int64) * count + column
    tl.store(at, d_cos.to(out.dtype.element_ty), mask=inside[:, None] & (column < count))


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


def check(margin: Margin, matmul_dtype: torch.dtype) -> None:
    """Refuse what these kernels do not compute."""
    if margin.competitive and margin.overrides_others:
        name = type(margin).__name__
        raise UserError(f"{name} has an `others` of its own, which Triton's kernels do not know: take kernels: torch")
    if matmul_dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"Triton's kernels do not multiply {matmul_dtype}: take kernels: torch")


def load_centres(weight: Tensor, index: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``tile_torch.load_centres``."""
    size, count = weight.shape[1], len(index) if isinstance(index, Tensor) else index.stop - index.start
    centres = torch.empty(count, size, dtype=dtype, device=weight.device)
    inv_norm = torch.empty(count, device=weight.device)
    _load_centres[(count,)](
        weight, centres, inv_norm, *_index_or_first(index), SIZE=size, BLOCK=_width(size), TINY=TINY
    )
    return centres, inv_norm


def exp_sums(
    x: Tensor,
    tile: Tile,
    target_column: Tensor,
    margin: Margin,
    batch: BatchView,
    entropy: bool,
    keep: bool = False,
) -> Tensor:
    """See ``tile_torch.exp_sums``."""
    (rows, size), count = x.shape, len(tile)
    blocks = triton.cdiv(count, _BLOCK)
    sums = torch.empty(2 if entropy else 1, blocks, rows, device=x.device)
    tops = torch.empty(blocks, rows, device=x.device) if margin.shifted else None
    _exp_sums[(triton.cdiv(rows, _BLOCK) * blocks,)](
        x, tile.centres, tile.inv_norm, target_column, tile.active, tops, sums, *_curve_arguments(margin, batch),
        rows, count, ENTROPY=entropy, SIZE=size, LOWEST=LOWEST, **_blocks(x),
    )  # fmt: skip
    if tops is not None:
        tile.top = tops.amax(0)
        rebase_(sums, tops, tile.top)
    return sums.sum(1)


def d_product(
    x: Tensor,
    tile: Tile,
    target_column: Tensor,
    margin: Margin,
    batch: BatchView,
    lse: Tensor,
    d_lse: Tensor,
    d_cos_y: Tensor,
) -> Tensor:
    """See ``tile_torch.d_product``."""
    (rows, size), count = x.shape, len(tile)
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    _d_product[(triton.cdiv(rows, _BLOCK) * triton.cdiv(count, _BLOCK),)](
        x, tile.centres, tile.inv_norm, target_column, tile.active, lse, d_lse.contiguous(), d_cos_y.contiguous(), out,
        *_curve_arguments(margin, batch), rows, count, SIZE=size, **_blocks(x),
    )  # fmt: skip
    return out


def sgd_(
    state: dict[str, Tensor], index: slice | Tensor, active: Tensor | None, gradient: Tensor, inv_norm: Tensor | None,
    *, lr: float, momentum: float, weight_decay: float,
) -> None:  # fmt: skip
    """See ``tile_torch.sgd_``."""
    count, size = gradient.shape
    numbers, first = _index_or_first(index)
    _sgd[(count,)](
        state["weight"], state.get("momentum"), gradient, inv_norm, numbers, active, first,
        lr, momentum, weight_decay, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def adamw_(
    state: dict[str, Tensor], index: slice | Tensor, active: Tensor | None, gradient: Tensor, inv_norm: Tensor | None,
    *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """See ``tile_torch.adamw_``."""
    count, size = gradient.shape
    numbers, first = _index_or_first(index)
    _adamw[(count,)](
        *(state[name] for name in ("weight", "exp_avg", "exp_avg_sq", "steps")),
        gradient, inv_norm, numbers, active, first, lr, *betas, eps, weight_decay, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def _index_or_first(index: slice | Tensor) -> tuple[Tensor | None, int]:
    """(row numbers, 0), or for a slice (None, its first row)."""
    return (None, index.start or 0) if isinstance(index, slice) else (index, 0)


def _curve_arguments(margin: Margin, batch: BatchView) -> tuple[float, Tensor | None, Tensor | None, float | None]:
    """What ``_others`` needs of a margin."""
    curve = margin.hard_negatives(batch)
    if curve is None:
        return margin.s, None, None, margin.interclass_filter
    return margin.s, curve.limit.contiguous(), curve.coefficients.contiguous(), margin.interclass_filter


def _blocks(x: Tensor) -> dict[str, int]:
    """Block sizes of a product and how it is launched."""
    step = _STEP_BYTES // x.element_size()
    return dict(BLOCK=_BLOCK, STEP=step, num_warps=_WARPS, num_stages=_STAGES)


def _width(size: int) -> int:
    """A row in one piece."""
    return triton.next_power_of_2(size)
