"""The arithmetic of one tile of class centres in Triton: functions of ``losses.head.tile_torch`` as fused kernels.

A product of embeddings and centres leaves the tensor cores as what becomes of it: sums of exponentials in the forward
pass, the gradient of the cosines (in half precision) in the backward pass. The (B, n) float32 logits do not exist. What
works on rows (norms, tangents, updates) reads and writes each number once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.head.tile_torch import TINY, Tile
from losses.margins.margin import Margin, Rows

# A block of products: 128 x 128, in steps of 128 bytes along d. Three steps in flight take 96 KiB of shared memory,
# which every architecture since Ampere has.
_BLOCK, _STEP_BYTES, _STAGES, _WARPS = 128, 128, 3, 8


@triton.jit
def _cosines(x, factor, inverse, batch, count, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """(BLOCK,) rows and columns of this program, their (BLOCK, BLOCK) cosines, and (BLOCK,) the centres' inverse norms.

    Programs that follow each other share their centres.
    """
    blocks = tl.cdiv(batch, BLOCK)
    within, first = tl.arange(0, BLOCK), (tl.program_id(0) // blocks) * BLOCK
    row, column = (tl.program_id(0) % blocks) * BLOCK + within, first + within
    # Past the last row or column the last one is read again; nobody asks for those products.
    at = tl.arange(0, STEP)
    x += tl.minimum(row, batch - 1)[:, None] * SIZE + at
    factor += first.to(tl.int64) * SIZE
    factor += tl.minimum(within, count - 1 - first) * SIZE + at[:, None]
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, SIZE, STEP):
        if SIZE % STEP == 0:
            a, b = tl.load(x + start), tl.load(factor + start)
        else:
            inside = start + at < SIZE
            a = tl.load(x + start, mask=inside, other=0.0)
            b = tl.load(factor + start, mask=inside[:, None], other=0.0)
        products = tl.dot(a, b, products, input_precision="ieee")
    inverse = tl.load(inverse + column, mask=column < count, other=0.0)
    return row, column, products * inverse, inverse


@triton.jit
def _others(cosines, s, limit, curve, filter, row, inside):
    """(BLOCK, BLOCK) logits of other classes and their slopes; see ``Margin.others``."""
    bent, slope = cosines, 1.0
    if limit is not None:
        hard = cosines > tl.load(limit + row, mask=inside, other=0.0)[:, None]
        a, b, e = tl.load(curve), tl.load(curve + 1), tl.load(curve + 2)
        bent = tl.where(hard, (a * cosines + b) * cosines + e, cosines)
        slope = tl.where(hard, 2 * a * cosines + b, 1.0)
    if filter is not None:
        bent = tl.where(cosines > filter, 0.0, bent)
        slope = tl.where(cosines > filter, 0.0, slope)
    return s * bent, s * slope


@triton.jit
def _exp_sums(
    x, factor, inverse, own, live, shift, sums, s, limit, curve, filter, batch, count,
    ENTROPY: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row, column, cosines, _ = _cosines(x, factor, inverse, batch, count, SIZE, BLOCK, STEP)
    logits, _ = _others(cosines, s, limit, curve, filter, row, row < batch)
    logits -= tl.load(shift)
    own = tl.load(own + row, mask=row < batch, other=-1)
    counts = (column < count) & (own[:, None] != column)
    if live is not None:
        counts = counts & (tl.load(live + column, mask=column < count, other=0) != 0)
    exp = tl.where(counts, tl.exp(logits), 0.0)
    # Each block of columns has a row of its own in ``sums``: added up afterwards, the result is the same every time.
    block, blocks = tl.program_id(0) // tl.cdiv(batch, BLOCK), tl.cdiv(count, BLOCK)
    tl.store(sums + block * batch + row, tl.sum(exp, 1), mask=row < batch)
    if ENTROPY:
        tl.store(sums + (blocks + block) * batch + row, tl.sum(exp * logits, 1), mask=row < batch)


@triton.jit
def _d_product(
    x, factor, inverse, own, live, lse, d_lse, d_cos_y, out, s, limit, curve, filter, batch, count,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row, column, cosines, inverse = _cosines(x, factor, inverse, batch, count, SIZE, BLOCK, STEP)
    inside = row < batch
    lse = tl.load(lse + row, mask=inside, other=0.0)
    d_lse = tl.load(d_lse + row, mask=inside, other=0.0)
    own = tl.load(own + row, mask=inside, other=-1)
    d_cos_y = tl.load(d_cos_y + row, mask=inside, other=0.0)
    logits, slope = _others(cosines, s, limit, curve, filter, row, inside)
    d_cos = tl.exp(logits - lse[:, None]) * d_lse[:, None] * slope
    if live is not None:
        d_cos = tl.where(tl.load(live + column, mask=column < count, other=0) != 0, d_cos, 0.0)
    d_cos = tl.where(own[:, None] == column, d_cos_y[:, None], d_cos) * inverse
    at = out + row[:, None].to(tl.int64) * count + column
    tl.store(at, d_cos.to(out.dtype.element_ty), mask=inside[:, None] & (column < count))


@triton.jit
def _row(rows, first):
    """Which row of the tile is this program's, and which of the shard."""
    place = tl.program_id(0).to(tl.int64)
    if rows is not None:
        return place, tl.load(rows + place)
    return place, first + place


@triton.jit
def _factors(weight, factor, inverse, rows, first, SIZE: tl.constexpr, BLOCK: tl.constexpr, TINY: tl.constexpr):
    place, row = _row(rows, first)
    at = tl.arange(0, BLOCK)
    values = tl.load(weight + row * SIZE + at, mask=at < SIZE, other=0.0)
    tl.store(factor + place * SIZE + at, values.to(factor.dtype.element_ty), mask=at < SIZE)
    tl.store(inverse + place, 1 / tl.maximum(tl.sqrt(tl.sum(values * values)), TINY))


@triton.jit
def _centre(weight, gradient, inverse, rows, live, first, scale, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the numbers of this program's centre are, which of them move, and (BLOCK,) they and d loss / d them."""
    place, row = _row(rows, first)
    within = tl.arange(0, BLOCK)
    at, mask = row * SIZE + within, within < SIZE
    if live is not None:
        mask = mask & (tl.load(live + place) != 0)
    w = tl.load(weight + at, mask=mask, other=0.0)
    g = tl.load(gradient + place * SIZE + within, mask=mask, other=0.0)
    if inverse is not None:
        inverse = tl.load(inverse + place)
        g -= w * (tl.sum(g * w) * inverse * inverse)
    return at, mask, w, g / scale


@triton.jit
def _sgd(
    weight, momentum, gradient, inverse, rows, live, first, lr, beta, decay, scale,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask, w, g = _centre(weight, gradient, inverse, rows, live, first, scale, SIZE, BLOCK)
    step = g + decay * w
    if momentum is not None:
        step += beta * tl.load(momentum + at, mask=mask, other=0.0)
        tl.store(momentum + at, step, mask=mask)
    tl.store(weight + at, w - lr * step, mask=mask)


@triton.jit
def _adamw(
    weight, mean, square, steps, gradient, inverse, rows, live, first, lr, beta1, beta2, eps, decay, scale,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask, w, g = _centre(weight, gradient, inverse, rows, live, first, scale, SIZE, BLOCK)
    m = beta1 * tl.load(mean + at, mask=mask, other=0.0) + (1 - beta1) * g
    v = beta2 * tl.load(square + at, mask=mask, other=0.0) + (1 - beta2) * g * g
    steps += _row(rows, first)[1]
    count = tl.load(steps) + 1
    unbias1, unbias2 = 1 - tl.exp(count * tl.log(beta1)), 1 - tl.exp(count * tl.log(beta2))
    w = w * (1 - lr * decay) - lr * (m / unbias1) / (tl.sqrt(v / unbias2) + eps)
    tl.store(mean + at, m, mask=mask)
    tl.store(square + at, v, mask=mask)
    tl.store(weight + at, w, mask=mask)
    tl.store(steps, count, mask=tl.sum(mask.to(tl.int32)) > 0)


def factors(weight: Tensor, rows: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``tile.factors``."""
    size, count = weight.shape[1], len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start
    factor = torch.empty(count, size, dtype=dtype, device=weight.device)
    inverse = torch.empty(count, device=weight.device)
    _factors[(count,)](weight, factor, inverse, *_which(rows), SIZE=size, BLOCK=_width(size), TINY=TINY)
    return factor, inverse


def exp_sums(
    x: Tensor, tile: Tile, column: Tensor, margin: Margin, rows: Rows, shift: Tensor, entropy: bool
) -> tuple[Tensor, None]:
    """See ``tile.exp_sums``."""
    (batch, size), count = x.shape, len(tile)
    blocks = triton.cdiv(count, _BLOCK)
    sums = torch.empty(2 if entropy else 1, blocks, batch, device=x.device)
    _exp_sums[(triton.cdiv(batch, _BLOCK) * blocks,)](
        x, tile.factor, tile.inverse, column, tile.live, shift, sums, *_bends(margin, rows), batch, count,
        ENTROPY=entropy, SIZE=size, **_blocks(x),
    )  # fmt: skip
    return sums.sum(1), None


def d_product(
    x: Tensor, tile: Tile, column: Tensor, margin: Margin, rows: Rows, lse: Tensor, d_lse: Tensor, d_cos_y: Tensor
) -> Tensor:
    """See ``tile.d_product``."""
    (batch, size), count = x.shape, len(tile)
    out = torch.empty(batch, count, dtype=x.dtype, device=x.device)
    _d_product[(triton.cdiv(batch, _BLOCK) * triton.cdiv(count, _BLOCK),)](
        x, tile.factor, tile.inverse, column, tile.live, lse, d_lse.contiguous(), d_cos_y.contiguous(), out,
        *_bends(margin, rows), batch, count, SIZE=size, **_blocks(x),
    )  # fmt: skip
    return out


def sgd_(
    state: dict[str, Tensor], rows: slice | Tensor, live: Tensor | None, gradient: Tensor, inverse: Tensor | None, *,
    lr: float, momentum: float, weight_decay: float, scale: float,
) -> None:  # fmt: skip
    """See ``tile.sgd_``."""
    count, size = gradient.shape
    row, first = _which(rows)
    _sgd[(count,)](
        state["weight"], state.get("momentum"), gradient, inverse, row, live, first, lr, momentum, weight_decay, scale,
        SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def adamw_(
    state: dict[str, Tensor], rows: slice | Tensor, live: Tensor | None, gradient: Tensor, inverse: Tensor | None, *,
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, scale: float,
) -> None:  # fmt: skip
    """See ``tile.adamw_``."""
    count, size = gradient.shape
    row, first = _which(rows)
    _adamw[(count,)](
        *(state[name] for name in ("weight", "exp_avg", "exp_avg_sq", "steps")), gradient, inverse, row, live, first,
        lr, *betas, eps, weight_decay, scale, SIZE=size, BLOCK=_width(size),
    )  # fmt: skip


def _which(rows: slice | Tensor) -> tuple[Tensor | None, int]:
    """Row numbers where they are not a run, and the first where they are."""
    return (None, rows.start or 0) if isinstance(rows, slice) else (rows, 0)


def _bends(margin: Margin, rows: Rows) -> tuple[float, Tensor | None, Tensor | None, float | None]:
    """What ``_others`` needs of a margin."""
    hard = margin.hard(rows)
    return (margin.s, *((None, None) if hard is None else (hard.limit, hard.curve)), margin.interclass_filter)


def _blocks(x: Tensor) -> dict[str, int]:
    """Block sizes of a product and how it is launched."""
    step = _STEP_BYTES // x.element_size()
    return dict(BLOCK=_BLOCK, STEP=step, num_warps=_WARPS, num_stages=_STAGES)


def _width(size: int) -> int:
    """A row in one piece."""
    return triton.next_power_of_2(size)
