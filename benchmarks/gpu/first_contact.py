"""What no CPU can try: products of half precision into float32, on operands of every layout; one step of the head."""

import torch

from benchmarks.gpu import reference
from benchmarks.gpu.part import Report, Setting
from benchmarks.measure import mean_time
from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.tile_torch import product

# Rows of a sample in glint360k's Partial FC at .1 and 8 ranks: no multiple of what tensor cores like, and one.
_UNALIGNED, _ALIGNED = 53_884, 53_888
LR, WEIGHT_DECAY = 0.1, 5e-4


def run(report: Report, setting: Setting) -> None:
    """Products against float64 on the same operands, then a step against the head written a second time."""
    torch.manual_seed(0)
    sizes = {"aligned": 512, "unaligned": 509} if setting.small else {"aligned": _ALIGNED, "unaligned": _UNALIGNED}
    times = {name: _products(report, setting, name, size) for name, size in sizes.items()}
    report.figure("products of unaligned rows over aligned ones", times["unaligned"] / times["aligned"], "x")
    for margin in ("arcface", "curricularface"):
        check_step(report, setting, margin, "torch", batch=64 if setting.small else 256, classes=2000)


def _products(report: Report, setting: Setting, name: str, count: int) -> float:
    """Check the head's three products at ``count`` centres; the milliseconds of all three."""
    device, rows, size = setting.place, 128 if setting.small else 1024, 512
    half = torch.bfloat16
    x = torch.randn(rows, size, device=device).to(half)
    centres = torch.randn(count, size, device=device).to(half)
    d_product = torch.randn(rows, count, device=device).to(half)
    operands = {
        "x · centresᵀ": (x, centres.T),
        "d · centres": (d_product, centres),
        "dᵀ · x": (d_product.T, x),
    }
    for formula, (a, b) in operands.items():
        ours = product(a, b)
        theirs = a[:64].double() @ b.double()  # some rows tell; all of them would take seconds in float64
        difference = reference.difference(ours[:64], theirs)
        report.at_most("product in float32 against float64", difference, 1e-3, "relative", product=formula, rows=name)
        assert ours.dtype == torch.float32
    milliseconds = 1e3 * mean_time(lambda: [product(a, b) for a, b in operands.values()], device, 3)
    report.figure("three products of the head", milliseconds, "ms", rows=name, batch=rows, centres=count)
    return milliseconds


def check_step(
    report: Report, setting: Setting, margin: str, kernels: str, batch: int, classes: int, size: int = 512
) -> None:
    """One step of the head as a GPU trains it, against float64: loss, gradient of the embeddings, centres after it."""
    torch.manual_seed(1)
    device = setting.place
    head = PartialFC(create_margin(margin), size, classes, kernels=kernels, matmul_dtype=setting.half, device=device)
    optimizer = CentreOptimizer(head, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    labels = torch.randint(classes, (batch,), device=device)
    # Not far from their centres, and not so near that there were no hard negatives for CurricularFace.
    embeddings = head.weight.detach()[labels] + 0.02 * torch.randn(batch, size, device=device)
    embeddings.requires_grad_()
    before = head.weight.detach().clone()
    out = head(embeddings, labels)
    out.loss.backward()
    optimizer.step(optimizer.finite())
    value, gradient, after = reference.step(margin, embeddings, before, labels, lr=LR, weight_decay=WEIGHT_DECAY)
    of = dict(margin=margin, kernels=kernels)
    exact = setting.half == torch.float32
    loss_error = abs(out.loss.item() - value.item()) / value.item()
    report.at_most("loss against float64", loss_error, 1e-4 if exact else 1e-2, "relative", **of)
    assert embeddings.grad is not None
    limit = 1e-3 if exact else 2e-2
    report.at_most("embeddings' gradient", reference.difference(embeddings.grad, gradient), limit, "relative", **of)
    moved = reference.difference(head.weight.detach() - before, after - before)
    report.at_most("centres' movement", moved, limit, "relative", **of)
