"""Images a second of backbones, forward and with the backward pass, by memory layout, precision and compiler.

    python -m benchmarks.models
    python -m benchmarks.models r100 vit_l --batch 128

The ways are measured in turns in one process; figures are medians. MFU is the share of this device's best matrix
product in the way's precision that the convolutions, linear layers and attention of the backbone reach; a backward
pass counts as two forward passes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from benchmarks.measure import in_turns, wall_time
from benchmarks.results import RESULTS, Row, bar_chart, save, show, slug
from models import create_model, model_names
from models.inspect import forward_gmac
from pipelines.common.command import run

ON_GPU = ["r18", "r50", "r100", "mbf", "vit_t", "vit_s", "vit_b", "vit_l", "transface_b"]
ON_CPU = ["mbf", "r18", "vit_t"]


class Way(NamedTuple):
    """How a backbone is run."""

    layout: torch.memory_format
    precision: torch.dtype
    compiled: bool


WAYS = {
    "plain": Way(torch.contiguous_format, torch.float32, False),
    "channels-last": Way(torch.channels_last, torch.float32, False),
    "channels-last bf16": Way(torch.channels_last, torch.bfloat16, False),
    "channels-last bf16 compiled": Way(torch.channels_last, torch.bfloat16, True),
}


def ceiling(precision: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of a few products of large square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=precision)
    return 2 * side**3 / min(wall_time(lambda: a @ a, device) for _ in range(10))


def steps(name: str, way: Way, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """The passes of a backbone run in a ``way``."""
    torch.manual_seed(0)
    model: nn.Module = create_model(name)
    model = model.to(device, memory_format=way.layout)  # type: ignore[call-overload]  # untyped
    images = (torch.rand(batch, 3, 112, 112, device=device) * 2 - 1).contiguous(memory_format=way.layout)
    if way.compiled:
        model.compile()
    half = torch.autocast(device.type, way.precision, enabled=way.precision != torch.float32)

    def forward() -> None:
        model.eval()
        with torch.no_grad(), half:
            model(images)

    def training() -> None:
        model.train()
        with half:
            embeddings = model(images)
        embeddings.float().square().mean().backward()

    return {"forward": forward, "training": training}


def needed_flop(name: str) -> dict[str, float]:
    """FLOP of an image's pass, by kind: the backward pass is twice the forward pass, that in training."""
    with torch.device("meta"):
        model, images = create_model(name), torch.empty(2, 3, 112, 112)
    return {
        "forward": 2e9 * forward_gmac(model.eval(), images),
        "training": 3 * 2e9 * forward_gmac(model.train(), images),
    }


def measure(name: str, ways: list[str], batch: int, rounds: int, ceilings: dict[torch.dtype, float]) -> list[Row]:
    """A row for each way: images a second, share of the ceiling, speed over the first way."""
    torch.compiler.reset()  # else a fifth network of one class runs uncompiled: graphs are counted by its code
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    passes = {way: steps(name, WAYS[way], batch, device) for way in ways}
    calls = {(way, kind): call for way in ways for kind, call in passes[way].items()}
    times, _ = in_turns(calls, rounds, device, warm_up=2)  # the first round compiles
    flop = needed_flop(name)
    rows = []
    for way in ways:
        row: Row = {"backbone": name, "way": way}
        for kind in passes[way]:
            images = batch / median(times[way, kind])
            row[f"{kind}_images_per_second"] = images
            row[f"{kind}_mfu"] = images * flop[kind] / ceilings[WAYS[way].precision]
            ratios = [a / b for a, b in zip(times[ways[0], kind], times[way, kind])]
            row[f"{kind}_speedup"] = median(ratios)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print tables, write JSON and a chart."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE", help=f"of {', '.join(model_names())}")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=128 if cuda else 16)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file and the chart")
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions use anyway, for products and the ceiling
    ceilings = {precision: ceiling(precision, device) for precision in (torch.float32, torch.bfloat16)}
    rows: list[Row] = []
    for name in options.backbones or (ON_GPU if cuda else ON_CPU):
        fresh = measure(name, options.ways, options.batch, options.rounds, ceilings)
        show([{key: row[key] for key in row if key != "backbone"} for row in fresh], f"{name}, batch {options.batch}")
        rows += fresh
    best = [{"precision": str(precision), "tflop_per_s": flop / 1e12} for precision, flop in ceilings.items()]
    show(best, "best product of large matrices")
    bars = [
        {"name": f"{row['backbone']} {row['way']}", "images_per_second": row["training_images_per_second"]}
        for row in rows
    ]
    bar_chart(bars, "name", "images_per_second", "forward and backward", options.output / f"models_{slug()}.png")
    print(save("models", [*rows, *best], options.output))


if __name__ == "__main__":
    run(main)
