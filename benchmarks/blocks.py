"""How to cut the products of the head's Triton kernels: times of block sizes, beside those in use, on this GPU.

    python -m benchmarks.blocks [--identities 131072] [--batch 1024] [--precision bf16]

The fastest of a kernel is printed as the line for ``losses.head.tile_triton.BLOCKS``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import wall_time
from benchmarks.results import RESULTS, Row, save, show
from losses import create_margin
from losses.head import tile_triton
from losses.head.tile_torch import Tile
from losses.head.tile_triton import BLOCKS, Blocks
from losses.margins.margin import BatchView
from pipelines.common.command import run
from pipelines.common.errors import UserError

CANDIDATES = [
    *(Blocks(rows, columns, warps) for rows in (64, 128) for columns in (64, 128) for warps in (4, 8)),
    Blocks(128, 128, 8, registers=128),
    Blocks(128, 128, 8, stages=4),
    Blocks(128, 256, 8),
    Blocks(128, 64, 8, stages=4),
]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def kernels(identities: int, batch: int, size: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    """A call of each kernel that multiplies, for one tile of ``identities`` centres of length ``size``."""
    margin, weight = create_margin("arcface"), torch.randn(identities, size, device=device)
    index = slice(0, identities)
    tile = Tile(0, index, None, *tile_triton.load_centres(weight, index, dtype))
    x = F.normalize(torch.randn(batch, size, device=device)).to(dtype)
    labels = torch.arange(batch, device=device) % identities
    row = torch.ones(batch, device=device)
    view = BatchView(labels, labels >= 0, row, row, size)
    return {
        "class_sums": lambda: tile_triton.class_sums(x, tile, labels, margin, view, entropy=False),
        "d_product": lambda: tile_triton.d_product(x, tile, labels, margin, view, 8 * row, row, row),
    }


def compare(
    identities: int, batch: int, size: int, dtype: torch.dtype, device: str, candidates: list[Blocks], rounds: int
) -> list[Row]:
    """A row for each kernel and candidate: the median time, TFLOP/s; a candidate that this GPU refuses says so."""
    place = torch.device(device)
    rows: list[Row] = []
    for kernel, call in kernels(identities, batch, size, dtype, device).items():
        key = kernel, dtype.itemsize
        in_use = BLOCKS[key]
        try:
            for blocks in dict.fromkeys([in_use, *candidates]):
                BLOCKS[key] = blocks
                row: Row = {"kernel": kernel, "blocks": str(blocks), "in_use": blocks == in_use}
                try:
                    call()  # compiles
                    seconds = median(wall_time(call, place) for _ in range(rounds))
                except Exception as error:  # Triton's for shared memory or registers, which have no common class
                    rows.append(row | {"milliseconds": type(error).__name__})
                    continue
                row |= {"milliseconds": 1000 * seconds, "tflop_per_s": 2e-12 * batch * identities * size / seconds}
                rows.append(row)
        finally:
            BLOCKS[key] = in_use
    return rows


def fastest(rows: list[Row], kernel: str) -> str:
    """The quickest blocks of a kernel."""
    timed = [row for row in rows if row["kernel"] == kernel and "tflop_per_s" in row]
    return min(timed, key=lambda row: row["milliseconds"])["blocks"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=131_072)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--precision", choices=TYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("block sizes are measured on a GPU, and there is none here")
    dtype = TYPES[args.precision]
    rows = compare(args.identities, args.batch, 512, dtype, "cuda", CANDIDATES, args.rounds)
    show(rows, f"{args.identities:,} centres, batch {args.batch}, {args.precision}")
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        print(f'("{kernel}", {dtype.itemsize}): {fastest(rows, kernel)}')
    print(save(f"blocks_{args.precision}", rows, args.output))


if __name__ == "__main__":
    run(main)
