"""On a GPU the head waits for one thing, how many classes are drawn, which it asks for before the backbone.

Here on the meta device, which has no numbers to wait for.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from losses import MARGINS, CentreOptimizer, PartialFC, create_margin
from pipelines.common.transfers import HostCopy
from tests.losses.support import RULES

CLASSES, D, ROWS = 5000, 64, 32


class NoCopies(TorchFunctionMode):
    """Refuses numbers of the host on their way to the device, which waits for them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta":
            from_host = any(isinstance(a, torch.Tensor) and a.device.type == "cpu" and a.dim() for a in args)
            assert not from_host and function not in (torch.tensor, torch.as_tensor), f"{function} waits"
        return result


@pytest.fixture
def large_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no meta device
    monkeypatch.setattr(HostCopy, "result", lambda self: torch.tensor([CLASSES // 10 + 3, 20]))


def step(margin, rule="sgd", accumulate=1, device="meta", guard=NoCopies, **options):
    fused = options.pop("fused", True)
    head = PartialFC(margin, D, CLASSES, device=device, matmul_dtype=torch.bfloat16, **options)
    optimizer = CentreOptimizer(head, **RULES[rule], fused=fused)
    optimizer.grad_scale = torch.ones((), device=device)
    x, uniform = torch.rand(ROWS, D, device=device, requires_grad=True), torch.rand(ROWS, device=device)
    labels = torch.zeros(ROWS, dtype=torch.int64, device=device)
    with guard():
        for _ in range(accumulate):
            head.prepare(labels)
            head(x, labels, uniform=uniform).loss.backward()
        optimizer.step(optimizer.finite())


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_no_margin_waits(name, rate):
    margin = create_margin(name)
    step(margin, sample_rate=rate, entropy=margin.competitive and margin.reduction == "logsumexp")


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("options", [dict(fused=False), dict(fused=True), dict(interclass_filter=0.4)])
def test_no_update_waits(rule, rate, options):
    options = dict(options)
    margin = create_margin("curricularface", interclass_filter=options.pop("interclass_filter", None))
    step(margin, rule, sample_rate=rate, **options)


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("fused", [False, True])
def test_accumulation_does_not_wait(rate, fused):
    step(create_margin("arcface"), accumulate=2, sample_rate=rate, fused=fused)


@pytest.mark.usefixtures("large_gpu")
def test_how_many_are_drawn_is_asked_before_the_backbone_and_read_behind_it(monkeypatch):
    happened = []
    begin, read = HostCopy.__init__, HostCopy.result
    monkeypatch.setattr(HostCopy, "__init__", lambda self, numbers: happened.append("asked") or begin(self, numbers))
    monkeypatch.setattr(HostCopy, "result", lambda self: happened.append("read") or read(self))
    head = PartialFC(create_margin("arcface"), D, CLASSES, device="meta", sample_rate=0.1)
    optimizer = CentreOptimizer(head, lr=0.1, fused=True)
    labels = torch.zeros(ROWS, dtype=torch.int64, device="meta")
    for _ in range(2):
        head.prepare(labels)
        happened.append("backbone")
        head(torch.rand(ROWS, D, device="meta", requires_grad=True), labels).loss.backward()
    optimizer.step()
    assert happened == ["asked", "backbone", "read"] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_a_real_gpu_is_not_waited_for(name, rate, kernels):
    @contextmanager
    def errors():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    if kernels == "triton" and create_margin(name).overrides_others:
        pytest.skip("Triton's kernels do not have it")
    options = dict(sample_rate=rate, kernels=kernels, device="cuda")
    step(create_margin(name), guard=nullcontext, **options)  # libraries wait when they are first used
    step(create_margin(name), guard=errors, **options)


@pytest.mark.usefixtures("large_gpu")
def test_tiles_of_a_gpu():
    """Aligned, a small part of the memory, and few: at a million centres the launches of a tile are nothing."""
    head = PartialFC(create_margin("arcface"), 512, 1_000_001, device="meta")
    size = head.tile_size(1024)
    assert size % 128 == 0 and 5 < 1_000_001 / size < 50
    assert size * (6 * 1024 + 12 * 512) < 80 * 2**30 / 50  # logits in both types; centres, their gradient and a copy
    assert PartialFC(create_margin("arcface"), 512, 93_431, device="meta").tile_size(128) == 93_431 // 128 * 128
    assert PartialFC(create_margin("arcface"), 512, 5, device="meta").tile_size(128) == 128
