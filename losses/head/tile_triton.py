"""The arithmetic of one tile of class centres in Triton: functions of ``losses.head.tile_torch`` as fused kernels.

A product of embeddings and centres leaves the tensor cores as what becomes of it: sums of exponentials in the forward
pass, the gradient of the cosines (in half precision) in the backward pass. The (B, n) float32 logits do not exist. What
works on single centres (norms, tangents, updates) is in ``losses.head.rows_triton``.

In a kernel an argument's name stands for the pointer until it is loaded, and from then on for the value. A program
computes one BLOCK_ROWS x BLOCK part of the products (rows: the batch's, columns: the tile's centres). Tensors are
contiguous, and an argument that is None is left out when the kernel is compiled.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.head.rows_triton import adamw_, lion_, load_centres, sgd_
from losses.head.tile_torch import LOWEST, Tile, rebase_, shifted
from losses.margins.margin import BatchView, Margin
from pipelines.common.errors import UserError

__all__ = ["adamw_", "check", "class_sums", "d_product", "lion_", "load_centres", "sgd_"]

_STEP_BYTES = 128  # that a block reads of each row at a time


@dataclass(frozen=True)
class Blocks:
    """How the products of a tile are cut.

    Attributes:
        rows, columns: of the batch and of the tile, that one program multiplies.
        stages: steps along d in flight.
        registers: the most that a thread may use, or None.
    """

    rows: int
    columns: int
    warps: int
    stages: int = 3
    registers: int | None = None

    def arguments(self, element_size: int) -> dict[str, int | None]:
        """What the kernels take, for operands of so many bytes a number."""
        return {
            "BLOCK_ROWS": self.rows,
            "BLOCK": self.columns,
            "STEP": _STEP_BYTES // element_size,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
        }


# By kernel and size of the operands' numbers. A table and not an autotuner: block sizes decide the order of sums, which
# so is the same on every rank and in every run. On Ampere and Hopper nothing spills registers, whatever the margin, and
# two programs or more fit on a multiprocessor, so that one multiplies while another takes exponentials (docs/log.md has
# the numbers). `python -m benchmarks.blocks` times these and others.
BLOCKS: dict[tuple[str, int], Blocks] = {
    ("class_sums", 2): Blocks(128, 64, 8),
    ("d_product", 2): Blocks(128, 64, 8),
    ("class_sums", 4): Blocks(64, 64, 4),
    ("d_product", 4): Blocks(64, 64, 4),
}

# Float32 operands are split into two of 11 bits and three of the four products are added: on the tensor cores as exact
# as float32 (errors of cosines 4e-7 at most, see docs/log.md), and an order faster than without them.
_PRECISION = "tf32x3"


@triton.jit
def _cosines(
    x, centres, inv_norm, rows, count,
    SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows and columns of this program, their (BLOCK_ROWS, BLOCK) cosines, and (BLOCK,) the centres' inverse norms.

    Programs that follow each other share their centres.
    """
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    within, first = tl.arange(0, BLOCK), (tl.program_id(0) // blocks) * BLOCK
    row, column = (tl.program_id(0) % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), first + within
    # Past the last row or column the last one is read again; nobody asks for those products.
    at = tl.arange(0, STEP)
    x += tl.minimum(row, rows - 1)[:, None] * SIZE + at
    centres += first.to(tl.int64) * SIZE
    centres += tl.minimum(within, count - 1 - first) * SIZE + at[:, None]
    products = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(0, SIZE, STEP):
        if SIZE % STEP == 0:
            a, b = tl.load(x + start), tl.load(centres + start)
        else:
            inside = start + at < SIZE
            a = tl.load(x + start, mask=inside, other=0.0)
            b = tl.load(centres + start, mask=inside[:, None], other=0.0)
        products = tl.dot(a, b, products, input_precision=PRECISION)
    inv_norm = tl.load(inv_norm + column, mask=column < count, other=0.0)
    return row, column, products * inv_norm, inv_norm


@triton.jit
def _others(cosines, s, limit, coefficients, filter, row, inside):
    """(BLOCK_ROWS, BLOCK) logits of other classes and their slopes; see ``Margin.others``."""
    value, slope = cosines, 1.0
    if limit is not None:
        hard = cosines > tl.load(limit + row, mask=inside, other=0.0)[:, None]
        a, b = tl.load(coefficients), tl.load(coefficients + 1)
        e, f = tl.load(coefficients + 2), tl.load(coefficients + 3)
        value = tl.where(hard, ((a * cosines + b) * cosines + e) * cosines + f, cosines)
        slope = tl.where(hard, (3 * a * cosines + 2 * b) * cosines + e, 1.0)
    if filter is not None:
        value = tl.where(cosines > filter, 0.0, value)
        slope = tl.where(cosines > filter, 0.0, slope)
    return s * value, s * slope


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) and its derivative; log(1 + e) = 2·artanh(e / (2 + e)) by its series, exact for small e too."""
    e = tl.exp(-tl.abs(x))
    z = e / (2 + e)  # at most 1/3: what is left of the series out is 1e-8 of it
    q = z * z
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2 * z * series, tl.where(x > 0, 1.0, e) / (1 + e)


@triton.jit
def _class_sums(
    x, centres, inv_norm, target_column, active, tops, sums, bias, s, limit, coefficients, filter, rows, count,
    BESIDE: tl.constexpr, SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    row, column, cosines, _ = _cosines(x, centres, inv_norm, rows, count, SIZE, BLOCK_ROWS, BLOCK, STEP, PRECISION)
    logits, _ = _others(cosines, s, limit, coefficients, filter, row, row < rows)
    target_column = tl.load(target_column + row, mask=row < rows, other=-1)
    counts = (column < count) & (target_column[:, None] != column)
    if active is not None:
        counts = counts & (tl.load(active + column, mask=column < count, other=0) != 0)
    # Each block of columns has a row of its own in ``sums``: added up afterwards, the result is the same every time.
    block, blocks = tl.program_id(0) // tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(count, BLOCK)
    logits = tl.where(counts, logits, 2 * LOWEST)  # whose exponential is 0 above any top
    if bias is not None:
        term, beside = _softplus(logits - tl.load(bias))
    else:
        if tops is not None:
            top = tl.maximum(tl.max(logits, 1), LOWEST)
            tl.store(tops + block * rows + row, top, mask=row < rows)
            logits -= top[:, None]
        term = tl.exp(logits)
        beside = term * logits
    tl.store(sums + block * rows + row, tl.sum(term, 1), mask=row < rows)
    if BESIDE:
        tl.store(sums + (blocks + block) * rows + row, tl.sum(beside, 1), mask=row < rows)


@triton.jit
def _d_product(
    x, centres, inv_norm, target_column, active, reduced, d_reduced, d_cos_y, out, bias, s, limit, coefficients, filter,
    rows, count,
    SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, column, cosines, inv_norm = _cosines(
        x, centres, inv_norm, rows, count, SIZE, BLOCK_ROWS, BLOCK, STEP, PRECISION
    )
    inside = row < rows
    reduced = tl.load(reduced + row, mask=inside, other=0.0)
    d_reduced = tl.load(d_reduced + row, mask=inside, other=0.0)
    target_column = tl.load(target_column + row, mask=inside, other=-1)
    d_cos_y = tl.load(d_cos_y + row, mask=inside, other=0.0)
    logits, slope = _others(cosines, s, limit, coefficients, filter, row, inside)
    if bias is not None:
        _, derivative = _softplus(logits - tl.load(bias))
    else:
        derivative = tl.exp(logits - reduced[:, None])
    d_cos = derivative * d_reduced[:, None] * slope
    if active is not None:
        d_cos = tl.where(tl.load(active + column, mask=column < count, other=0) != 0, d_cos, 0.0)
    d_cos = tl.where(target_column[:, None] == column, d_cos_y[:, None], d_cos) * inv_norm
    at = out + row[:, None].to(tl.int64) * count + column
    tl.store(at, d_cos.to(out.dtype.element_ty), mask=inside[:, None] & (column < count))


def check(margin: Margin, matmul_dtype: torch.dtype) -> None:
    """Refuse what these kernels do not compute."""
    if margin.competitive and margin.overrides_others:
        name = type(margin).__name__
        raise UserError(f"{name} has an `others` of its own, which Triton's kernels do not know: take kernels: torch")
    if matmul_dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"Triton's kernels do not multiply {matmul_dtype}: take kernels: torch")


def class_sums(
    x: Tensor,
    tile: Tile,
    target_column: Tensor,
    margin: Margin,
    batch: BatchView,
    entropy: bool,
    keep: bool = False,
) -> Tensor:
    """See ``tile_torch.class_sums``."""
    (rows, size), count, blocks = x.shape, len(tile), BLOCKS["class_sums", x.element_size()]
    of_columns, beside = triton.cdiv(count, blocks.columns), entropy or batch.bias is not None
    sums = torch.empty(2 if beside else 1, of_columns, rows, device=x.device)
    tops = torch.empty(of_columns, rows, device=x.device) if shifted(margin, entropy) else None
    _class_sums[(triton.cdiv(rows, blocks.rows) * of_columns,)](
        x, tile.centres, tile.inv_norm, target_column, tile.active, tops, sums, batch.bias,
        *_curve_arguments(margin, batch), rows, count, BESIDE=beside, SIZE=size, PRECISION=_PRECISION, LOWEST=LOWEST,
        **blocks.arguments(x.element_size()),
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
    reduced: Tensor,
    d_reduced: Tensor,
    d_cos_y: Tensor,
) -> Tensor:
    """See ``tile_torch.d_product``."""
    (rows, size), count, blocks = x.shape, len(tile), BLOCKS["d_product", x.element_size()]
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    _d_product[(triton.cdiv(rows, blocks.rows) * triton.cdiv(count, blocks.columns),)](
        x, tile.centres, tile.inv_norm, target_column, tile.active, reduced, d_reduced.contiguous(),
        d_cos_y.contiguous(), out, batch.bias, *_curve_arguments(margin, batch), rows, count,
        SIZE=size, PRECISION=_PRECISION, **blocks.arguments(x.element_size()),
    )  # fmt: skip
    return out


def _curve_arguments(margin: Margin, batch: BatchView) -> tuple[float, Tensor | None, Tensor | None, float | None]:
    """What ``_others`` needs of a margin."""
    curve = margin.hard_negatives(batch)
    if curve is None:
        return margin.s, None, None, margin.interclass_filter
    return margin.s, curve.limit.contiguous(), curve.coefficients.contiguous(), margin.interclass_filter
