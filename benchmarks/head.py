"""Time and memory of the classifier head: forward, backward and update of the centres.

    python -m benchmarks.head
    python -m benchmarks.head --identities 100000 --sample-rates 1 --batch 256
    python -m benchmarks.head --largest --methods fused materialised --sample-rates 1 --memory 4

Methods:

- ``fused``: PartialFC whose centres are updated a tile at a time;
- ``triton`` (on a GPU) and ``compiled``: the same, with the loop's arithmetic in Triton and under torch.compile;
- ``streamed``: the gradient of all centres first;
- ``dense``: PartialFC in plain autograd;
- ``materialised``: all logits in memory, as arcface_torch does it.

Each is measured in processes of its own, in turns; times are medians over all turns, memory is the largest peak.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TypedDict

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.materialised import MaterialisedHead
from benchmarks.measure import peak_memory, wall_time
from benchmarks.results import RESULTS, Row, save, show, slug
from losses import CentreOptimizer, PartialFC, create_margin
from losses.head import tile_torch as tile
from pipelines.common.command import run

METHODS = ("triton", "fused", "compiled", "streamed", "dense", "materialised")
MIB = 2**20
EMBEDDING_SIZE = 512


class SGDOptions(TypedDict):
    lr: float
    momentum: float
    weight_decay: float


SGD: SGDOptions = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


# -- one measurement, in a process of its own --------------------------------------------------------------------------


def build(
    method: str, identities: int, sample_rate: float, device: torch.device, margin: str = "arcface"
) -> Callable[[Tensor, Tensor], None]:
    """One training step of the head as a function of embeddings (B, d) and labels (B,); materialised it is ArcFace."""
    half = torch.bfloat16 if device.type == "cuda" else None
    if method == "materialised":
        yardstick = MaterialisedHead(EMBEDDING_SIZE, identities, sample_rate=sample_rate, half=half, device=device)
        return _step(yardstick, torch.optim.SGD(yardstick.parameters(), **SGD))
    head = PartialFC(
        create_margin(margin, gradient="straight_through"),
        EMBEDDING_SIZE,
        identities,
        sample_rate=sample_rate,
        mode="dense" if method == "dense" else "streamed",
        kernels="triton" if method == "triton" else "torch",
        matmul_dtype=half or torch.float32,
        device=device,
    )
    if method == "compiled":  # what works on (B, n) numbers; the rest works on (n, d)
        head.arithmetic = compiled = ModuleType("compiled")
        functions = {"class_sums": torch.compile(tile.class_sums), "d_product": torch.compile(tile.d_product)}
        vars(compiled).update(vars(tile) | functions)
    optimizer = CentreOptimizer(head, fused=method in ("fused", "triton", "compiled"), **SGD)
    return _step(lambda embeddings, labels: head(embeddings, labels).loss, optimizer)


def _step(
    loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer | CentreOptimizer
) -> Callable[[Tensor, Tensor], None]:
    def step(embeddings: Tensor, labels: Tensor) -> None:
        loss(embeddings, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Measured(TypedDict, total=False):
    """Times of single steps (ms) and peak memory (MiB); neither where a step does not fit."""

    fits: bool
    times: list[float]
    peak: float


def measure(
    method: str,
    identities: int,
    sample_rate: float,
    batch: int,
    threads: int,
    memory: int,
    seconds: float = 0.0,
    least: int = 0,
) -> Measured:
    """Times and memory of single steps; memory beside that of the process before it built the head.

    A first step warms up; then some are timed for ``seconds``, at ``least`` so many. A step that needs more than
    ``memory`` bytes (CPU; 0 for no limit) ends with ``{"fits": False}``.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    embeddings = torch.randn(batch, EMBEDDING_SIZE, device=device, requires_grad=True)
    labels = torch.randint(identities, (batch,), device=device)
    (embeddings @ embeddings.T).sum().backward()  # what libraries allocate on their first use is not the head's
    embeddings.grad = None
    before = peak_memory(device)
    if memory and not cuda:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    times: list[float] = []
    try:
        step = build(method, identities, sample_rate, device)
        step(embeddings, labels)
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            times.append(1000 * wall_time(lambda: step(embeddings, labels), device))
    except RuntimeError as error:  # CUDA's OutOfMemoryError is one too
        if not any(word in str(error) for word in ("memory", "ALLOC_FAILED")):
            raise
        return {"fits": False}
    return {"fits": True, "times": times, "peak": (peak_memory(device) - before) / MIB}


def measure_apart(**arguments: object) -> Measured:
    """``measure`` in a new process.

    Its threads sleep while they wait for each other: on a machine with other work, spinning ones would measure that.
    """
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise ChildProcessError(f"measuring {arguments} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


# -- all of them -------------------------------------------------------------------------------------------------------


def compare(identities: int, sample_rate: float, methods: list[str], rounds: int, **arguments: float) -> list[Row]:
    """A row for each method, measured in turns."""
    times: dict[str, list[float]] = {method: [] for method in methods}
    peaks: dict[str, float] = {}
    for _, method in product(range(rounds), methods):
        result = measure_apart(method=method, identities=identities, sample_rate=sample_rate, **arguments)
        if result["fits"]:
            times[method] += result["times"]
            peaks[method] = max(result["peak"], peaks.get(method, 0))
    rows = []
    for method in methods:
        row: Row = {"method": method, "identities": identities, "sample_rate": sample_rate}
        if not times[method]:
            limit = f" in {arguments['memory'] / 2**30:.3g} GiB" if arguments["memory"] else ""
            rows.append(row | {"milliseconds": f"does not fit{limit}"})
            continue
        milliseconds, peak = median(times[method]), peaks[method]
        numbers = EMBEDDING_SIZE * identities
        row |= {"milliseconds": milliseconds, "peak_mib": peak, "beside_centres_mib": peak - 4 * numbers / MIB}
        # What any method must do with the centres that take part: three products; read them twice, their momentum
        # once, and write both.
        row["gflop_per_s"] = 6 * arguments["batch"] * numbers * sample_rate / milliseconds / 1e6
        row["gb_per_s"] = 5 * 4 * numbers * sample_rate / milliseconds / 1e6
        if times.get("materialised"):
            row["speed_ratio"] = median(times["materialised"]) / milliseconds
            row["memory_ratio"] = peak / peaks["materialised"]
        rows.append(row)
    return rows


def largest(method: str, sample_rate: float, **arguments: float) -> Row:
    """The most identities (to 2 %) with which a step fits in the device's memory, by doubling and halving."""

    def fits(identities: int) -> bool:
        return measure_apart(method=method, identities=identities, sample_rate=sample_rate, **arguments)["fits"]

    low, high = 0, 1_000_000
    while fits(high):
        low, high = high, 2 * high
    while high - low > 0.02 * high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"method": method, "sample_rate": sample_rate, "largest_identities": low}


def ceilings() -> list[Row]:
    """What the GPU does at best: a large bf16 product, and a copy."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(big := torch.randn(2**28, device="cuda"))

    def seconds(work: Callable[[], object]) -> float:
        return median(wall_time(work, big.device) for _ in range(20))

    return [
        {"ceiling": "product", "gflop_per_s": 2 * 8192**3 / seconds(lambda: a @ a) / 1e9},
        {"ceiling": "copy", "gb_per_s": 8 * big.numel() / seconds(lambda: b.copy_(big)) / 1e9},
    ]


def chart(rows: list[Row], path: Path) -> None:
    """Time and memory against the number of identities, a line for each method, at full softmax."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, label in zip(axes, ("milliseconds", "peak_mib"), ("ms a step", "peak memory, MiB")):
        for method in dict.fromkeys(row["method"] for row in rows if "method" in row):
            points = [row for row in rows if row["method"] == method and row["sample_rate"] == 1 and "peak_mib" in row]
            axis.plot([row["identities"] for row in points], [row[key] for row in points], "o-", label=method)
        axis.set(xscale="log", yscale="log", xlabel="identities", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [10_000, 100_000, 1_000_000] + [10_000_000] * cuda
    parser.add_argument("--identities", type=int, nargs="+", default=sizes)
    parser.add_argument("--sample-rates", type=float, nargs="+", default=[1.0, 0.3, 0.1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[not cuda :]))
    parser.add_argument("--batch", type=int, default=1024 if cuda else 256)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each method")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure in a turn, at least two steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=float, default=_available_gib(), help="limit of a process on a CPU, GiB")
    parser.add_argument("--largest", action="store_true", help="search for the most identities that fit, instead")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    shared = dict(batch=args.batch, threads=args.threads, memory=int(args.memory * 2**30))
    if args.largest:
        rows = [largest(method, rate, **shared) for method, rate in product(args.methods, args.sample_rates)]
        place = "the GPU" if cuda else f"{args.memory:.3g} GiB"
        show(rows, f"most identities that fit into {place}, batch {args.batch}")
        print(save("head_largest", rows, args.output))
        return
    rows = []
    for identities, rate in product(args.identities, args.sample_rates):
        timing = dict(seconds=args.seconds, least=2)
        fresh = compare(identities, rate, args.methods, args.rounds, **shared, **timing)
        rows += fresh
        columns = [{key: row[key] for key in row if key not in ("identities", "sample_rate")} for row in fresh]
        show(columns, f"{identities:,} identities, batch {args.batch}, sample rate {rate:g}")
    best = ceilings() if cuda else []
    if best:
        show(best, "ceilings")
    path = save("head", rows + best, args.output)
    if any("peak_mib" in row for row in rows):  # something fitted
        chart(rows, args.output / f"head_{slug()}.png")
    print(f"{path}")


def _available_gib() -> float:
    """Nine tenths of the memory that is free now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 0.9 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


if __name__ == "__main__":
    run(main)
