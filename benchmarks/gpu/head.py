"""The classifier on the device: exactness, time and memory against materialised logits, more than 2^31 numbers."""

import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.first_contact import check_step
from benchmarks.gpu.part import Report, Setting
from benchmarks.head import EMBEDDING_SIZE, MIB, build
from benchmarks.measure import forget, mean_time, peak_memory
from losses import CentreOptimizer, PartialFC, create_margin

LARGE = 4_500_000  # centres of 512 numbers: more than 2^31
FASTER, SMALLER = 3.0, 5.0  # than materialised logits, at the most identities that are raced
_ROOM = 1.3  # of the bytes of centres and momentum that must be free for the large head


def run(report: Report, setting: Setting) -> None:
    """Exactness first, then the large head, then the races, the most telling ones first."""
    kernels = ("torch", "triton") if find_spec("triton") else ("torch",)
    if len(kernels) == 1:
        report.skip("Triton's kernels", "triton is not installed")
    for name in kernels:
        for margin in ("arcface", "curricularface"):
            batch, classes, size = (32, 256, 64) if setting.small else (256, 2000, 512)
            check_step(report, setting, margin, name, batch, classes, size)
    for name in kernels:
        _large(report, setting, name)
    identities, batch = ((2_000,), 32) if setting.small else ((1_000_000, 360_000, 45_000), 1024)
    methods = ["fused", *(["triton"] if len(kernels) > 1 and setting.device == "cuda" else []), "materialised"]
    for count in identities:
        for rate in (1.0, 0.3):
            for margin in ("arcface", "curricularface"):
                of = dict(identities=count, rate=rate, margin=margin)
                if setting.seconds < 8 and not setting.small:
                    report.skip(str(of), "no time")
                    continue
                _race(report, setting, methods[: None if margin == "arcface" else -1], batch, of)
    if "triton" in methods:
        _registers(report)


def _large(report: Report, setting: Setting, kernels: str) -> None:
    """Of a head of more than 2^31 numbers the rows drawn move, and no other: the first, the middle and the last."""
    classes, device = 1000 if setting.small else LARGE, setting.place
    if setting.device == "cuda":
        needed = _ROOM * 2 * 4 * EMBEDDING_SIZE * classes
        free, _ = torch.cuda.mem_get_info(device)
        if free < needed:
            reason = f"{free / 2**30:.0f} GiB are free, it needs {needed / 2**30:.0f}"
            report.skip(f"a head of {classes:,} centres, kernels {kernels}", reason)
            return
    head = PartialFC(
        create_margin("arcface"), EMBEDDING_SIZE, classes,
        sample_rate=1e-9, kernels=kernels, matmul_dtype=setting.half, device=device,
    )  # fmt: skip
    optimizer = CentreOptimizer(head, lr=0.1, fused=True)
    drawn = [0, classes // 2, classes - 1]
    labels = torch.tensor(drawn * 4, device=device)
    embeddings = torch.randn(len(labels), EMBEDDING_SIZE, device=device, requires_grad=True)
    before = head.weight.detach().sum(1)
    head(embeddings, labels).loss.backward()
    optimizer.step(optimizer.finite())
    moved = (head.weight.detach().sum(1) != before).nonzero().flatten().tolist()
    of: dict[str, Any] = dict(numbers=classes * EMBEDDING_SIZE, kernels=kernels)
    report.holds("only the rows drawn move", moved == drawn, str(moved[:9]), limit=f"= {drawn}", **of)
    del head, optimizer, before
    forget(setting.place)


def _race(report: Report, setting: Setting, methods: list[str], batch: int, of: dict[str, Any]) -> None:
    """Time and memory of each method's step; at the most identities and all centres, what must hold."""
    device, identities, rate = setting.place, of["identities"], of["rate"]
    torch.manual_seed(0)
    embeddings = torch.randn(batch, EMBEDDING_SIZE, device=device, requires_grad=True)
    labels = torch.randint(identities, (batch,), device=device)
    times: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for method in methods:
        forget(setting.place)
        before = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
        try:
            step: Callable[[Tensor, Tensor], None] | None
            step = build(method, identities, rate, device, of["margin"])
            seconds = _median_time(step, embeddings, labels, setting)
        except torch.cuda.OutOfMemoryError:
            report.skip(f"{method}, {of}", "does not fit into memory")
            continue
        finally:
            embeddings.grad = step = None
        numbers = EMBEDDING_SIZE * identities
        times[method], peaks[method] = seconds, peak_memory(device) - before
        report.figure("step of the head", 1e3 * seconds, "ms", method=method, **of)
        # The least that a step does with the centres that take part: three products; two readings of them, one of
        # their momentum, and both written.
        report.figure("products done", 6 * batch * numbers * rate / seconds / 1e12, "TFLOP/s", method=method, **of)
        report.figure("centres moved", 5 * 4 * numbers * rate / seconds / 1e9, "GB/s", method=method, **of)
        if setting.device == "cuda":
            beside = (peaks[method] - 4 * numbers) / MIB
            report.figure("peak memory beside the centres", beside, "MiB", method=method, **of)
    ours = [method for method in times if method != "materialised"]
    if "materialised" not in times or not ours:
        return
    best = min(ours, key=times.__getitem__)
    faster = times["materialised"] / times[best]
    if identities < 1_000_000 or rate < 1:
        report.figure("faster than materialised", faster, "x", method=best, **of)
        return
    weight = 4 * EMBEDDING_SIZE * identities
    smaller = (peaks["materialised"] - weight) / (peaks[best] - weight)
    report.at_least("faster than materialised", faster, FASTER, "x", method=best, **of)
    report.at_least("memory beside the centres, materialised over ours", smaller, SMALLER, "x", method=best, **of)


def _median_time(step: Callable[[Tensor, Tensor], None], x: Tensor, labels: Tensor, setting: Setting) -> float:
    """Seconds of a step: the median of some means over 20 steps without a wait between them."""
    calls, rounds = (2, 1) if setting.small else (20, 3)
    for _ in range(2):
        step(x, labels)
    once = mean_time(lambda: step(x, labels), setting.place, 2)
    calls = max(2, min(calls, round(0.3 / once)))
    return statistics.median(mean_time(lambda: step(x, labels), setting.place, calls) for _ in range(rounds))


def _registers(report: Report) -> None:
    """Registers a thread, and what did not fit into them, of the kernels as they were compiled in this process."""
    from losses.head import rows_triton, tile_triton

    for kernel in (tile_triton._class_sums, tile_triton._d_product, rows_triton._sgd):
        for registers, spilled in _compiled(kernel):
            report.figure("registers a thread", registers, "", kernel=kernel.__name__, spilled=spilled)


def _compiled(kernel: Any) -> list[tuple[int, int]]:
    """Registers and spills of a kernel's variants, as far as this version of Triton keeps them where they were."""
    try:
        binaries = [binary for cache in kernel.device_caches.values() for binary in cache[0].values()]
        return sorted({(binary.n_regs, binary.n_spills) for binary in binaries if binary.n_regs is not None})
    except (AttributeError, TypeError, KeyError, IndexError):
        return []
