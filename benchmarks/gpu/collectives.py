"""Every collective that the code uses, with its types and shapes, on the device and on the processor; DDP; a shard."""

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import group
from benchmarks.measure import mean_time
from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from losses.head import collective
from models import create_model
from models.sharded import load_sharded


def run(report: Report, setting: Setting) -> None:
    """Each collective against the result that a rank computes from all ranks' parts, which it knows."""
    with group(setting) as world:
        report.figure("ranks", world.size)
        for name, case in _cases(8 if setting.small else 128, world.size).items():
            parts = [case.part(rank) for rank in range(world.size)]
            for device in dict.fromkeys([world.device, torch.device("cpu")]):
                ours = case.call(parts[world.rank].to(device)).cpu()
                right = _equal(ours, case.expected(parts, world.rank), parts)
                backend = dist.get_backend_config().split(f"{device.type}:")[-1].partition(",")[0]
                _all_hold(report, name, right, world, on=device.type, backend=backend)
            mine = parts[world.rank].to(world.device)
            seconds = mean_time(partial(case.call, mine), world.device, 5 if setting.small else 50)
            report.figure(f"{name}: time", 1e6 * seconds, "µs", bytes=mine.nbytes)
        _objects(report, world)
        _ddp(report, setting, world)
        _shard(report, setting, world)


class Case(NamedTuple):
    """A collective.

    Attributes:
        part: what a rank gives, by its number.
        call: the collective.
        expected: what a rank must get, from all ranks' parts and its number.
    """

    part: Callable[[int], Tensor]
    call: Callable[[Tensor], Tensor]
    expected: Callable[[list[Tensor], int], Tensor]


def _cases(rows: int, ranks: int) -> dict[str, Case]:
    """What training and evaluation exchange, by name. ``rows``: images of a rank."""
    size = 512
    whole = _random(rows * ranks, size)  # a row of each for every rank's
    largest, least = dist.ReduceOp.MAX, dist.ReduceOp.MIN
    return {
        "all-gather of embeddings": Case(_random(rows, size), _gather, _stacked),
        "all-gather of labels": Case(_random(rows, dtype=torch.int64), _gather, _stacked),
        "all-gather as a list": Case(_random(rows, 2, size), _listed, _stacked),
        "reduce-scatter of gradients": Case(whole, _scatter, lambda parts, rank: _share(_total(parts, rank), rank)),
        "sum of exponentials": Case(_random(2, rows), partial(_reduce, dist.ReduceOp.SUM), _total),
        "sum in bf16": Case(_random(rows, size, dtype=torch.bfloat16), partial(_reduce, dist.ReduceOp.SUM), _total),
        "largest logits": Case(_random(rows), partial(_reduce, largest), lambda parts, _: torch.stack(parts).amax(0)),
        "whether the step is taken": Case(
            lambda rank: torch.tensor(float(rank == 0)),
            partial(_reduce, least),
            lambda parts, _: torch.stack(parts).amin(0),
        ),
        "votes": Case(
            _random(3, dtype=torch.int64), partial(_reduce, largest), lambda parts, _: torch.stack(parts).amax(0)
        ),
        "exchange of centres": Case(
            whole, _exchange, lambda parts, rank: torch.cat([_share(part, rank) for part in parts])
        ),
        "broadcast": Case(_random(rows, rows), _broadcast, lambda parts, _: parts[0]),
    }


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[int], Tensor]:
    def part(rank: int) -> Tensor:
        generator = torch.Generator().manual_seed(rank + 1)
        if dtype == torch.int64:
            return torch.randint(10**9, shape, generator=generator)
        return torch.randn(shape, generator=generator).to(dtype)

    return part


def _gather(x: Tensor) -> Tensor:
    out = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
    collective._all_gather(out, x)
    return out


def _scatter(x: Tensor) -> Tensor:
    out = x.new_empty(len(x) // dist.get_world_size(), *x.shape[1:])
    collective._reduce_scatter(out, x)
    return out


def _reduce(op: Any, x: Tensor) -> Tensor:
    out = x.clone()
    dist.all_reduce(out, op=op)
    return out


def _exchange(x: Tensor) -> Tensor:
    out, ranks = torch.empty_like(x), dist.get_world_size()
    counts = [len(x) // ranks] * ranks
    dist.all_to_all_single(out, x, counts, counts)
    return out


def _listed(x: Tensor) -> Tensor:
    out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(out, x)
    return torch.cat(out)


def _broadcast(x: Tensor) -> Tensor:
    out = x.clone()
    dist.broadcast(out, src=0)
    return out


def _total(parts: list[Tensor], rank: int) -> Tensor:
    return torch.stack([part.double() for part in parts]).sum(0)


def _stacked(parts: list[Tensor], rank: int) -> Tensor:
    return torch.cat(parts)


def _share(x: Tensor, rank: int) -> Tensor:
    return x.chunk(dist.get_world_size())[rank]


def _equal(ours: Tensor, theirs: Tensor, parts: list[Tensor]) -> bool:
    if ours.dtype == torch.int64 or ours.shape != theirs.shape:
        return torch.equal(ours, theirs)
    if ours.dtype == torch.bfloat16:  # each sum on the way is rounded, so the error is as large as what cancels out
        largest = torch.stack([part.double().abs() for part in parts]).sum(0)
        return bool(((ours.double() - theirs).abs() <= 2e-2 * largest).all())
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


def _all_hold(report: Report, name: str, right: bool, world: World, **of: Any) -> None:
    """A check that passes where it does on every rank."""
    votes: list[Any] = [None] * world.size
    dist.all_gather_object(votes, right)
    wrong = [rank for rank, vote in enumerate(votes) if not vote]
    report.holds(name, not wrong, f"wrong on ranks {wrong}" if wrong else "equal", **of)


def _objects(report: Report, world: World) -> None:
    """What ranks tell each other in words; and the wait for all."""
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, ("rank", world.rank))
    told = [f"of rank {world.rank}"]
    dist.broadcast_object_list(told)
    dist.barrier()
    right = gathered == [("rank", rank) for rank in range(world.size)] and told == ["of rank 0"]
    _all_hold(report, "objects", right, world)


def _ddp(report: Report, setting: Setting, world: World) -> None:
    """Gradients of a channels-last network through DistributedDataParallel against the mean that they must be."""
    torch.manual_seed(0)
    network: nn.Module = create_model("mbf", 64, 56, width=0.125).train()
    alone = copy.deepcopy(network).to(world.device)
    images = [torch.randn(8, 3, 56, 56, generator=torch.Generator().manual_seed(rank)) for rank in range(world.size)]
    expected = [torch.zeros_like(parameter) for parameter in alone.parameters()]
    for part in images:
        alone.zero_grad()
        alone(part.to(world.device)).square().sum().backward()
        for mean, parameter in zip(expected, alone.parameters()):
            assert parameter.grad is not None, "every parameter takes part"
            mean += parameter.grad / world.size
    places = [world.device.index] if world.device.type == "cuda" else None
    for hook in (None, default_hooks.bf16_compress_hook):
        if hook and world.device.type == "cpu":
            report.skip("DDP with gradients in bf16", "gloo is not what it is for")
            continue
        copied = copy.deepcopy(network).to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        replicated = DistributedDataParallel(copied, places, gradient_as_bucket_view=True)
        if hook:
            replicated.register_comm_hook(None, hook)
        inputs = images[world.rank].to(world.device, memory_format=torch.channels_last)
        replicated(inputs).square().sum().backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in copied.parameters()]
        ours, theirs = torch.cat([g.flatten() for g in gradients]), torch.cat([g.flatten() for g in expected])
        difference = ((ours - theirs).norm() / theirs.norm()).item()
        limit = 2e-2  # the convolutions' TF32, and bf16 on the way
        right = difference <= limit
        name = "DDP's gradients" + (" in bf16" if hook else "")
        _all_hold(report, name, right, world, difference=f"{difference:.1e}", allowed=limit)


def _shard(report: Report, setting: Setting, world: World) -> None:
    """A tensor sharded like the centres, saved by ``torch.distributed.checkpoint`` and loaded as a run does it."""
    head = PartialFC(create_margin("arcface"), 64, 1001, device=world.device)
    told = [str(setting.scratch / "dcp")]
    dist.broadcast_object_list(told)
    state = {"centres": head.shard(head.weight.detach().clone())}
    words = dist.new_group(backend="gloo")  # as training does it
    dcp.save(state, checkpoint_id=told[0], process_group=words)
    loaded = {"centres": head.shard(torch.zeros_like(head.weight.detach()))}
    load_sharded(Path(told[0]), loaded)
    local = loaded["centres"]
    local = local.to_local() if hasattr(local, "to_local") else local
    _all_hold(report, "a sharded tensor, saved and loaded", torch.equal(local, head.weight.detach()), world)
    if world.main:
        shutil.rmtree(told[0], ignore_errors=True)
