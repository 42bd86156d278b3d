"""Collectives of the head with their gradients. Without a process group, or alone in it, each is the identity.

Every rank computes the same loss of the same global batch (the loss is *replicated*), while the gradients that reach
the gathered embeddings from a rank's own centres are *partial*. The two kinds need different backward passes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

Group = dist.ProcessGroup | None
# Named so since torch 2.13, which warns of the older names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size(group: Group = None) -> int:
    """Number of ranks of the group; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: Group = None) -> int:
    """This process's rank in the group; 0 without torch.distributed, or alone in it."""
    return dist.get_rank(group) if world_size(group) > 1 else 0


Range = tuple[int, int]


def shard_range(count: int, rank: int, ranks: int) -> Range:
    """The [start, stop) that a rank holds by DTensor's rule: an even share rounded up; the last ranks get less."""
    share = -(-count // ranks)
    start = min(rank * share, count)
    return start, min(start + share, count)


def reshard(rows: Tensor, old: int, new: int, group: Group = None) -> Tensor:
    """Move rows between the ranks: from this rank's range of ``old`` rows to its range of ``new`` >= ``old`` rows.

    Returns the rows of the new range that were there before.
    """
    ranks, here = world_size(group), rank(group)
    if ranks == 1:
        return rows

    def shared(sender: int, receiver: int) -> int:
        (first, last), (start, stop) = shard_range(old, sender, ranks), shard_range(new, receiver, ranks)
        return max(0, min(last, stop) - max(first, start))

    received = [shared(sender, here) for sender in range(ranks)]
    out = rows.new_empty(sum(received), *rows.shape[1:])
    sent = [shared(here, receiver) for receiver in range(ranks)]
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class RowGather:
    """Stacks the rows that the ranks hold, in rank order.

    ``uneven=False`` assumes that all ranks hold equally many and costs no communication; with ``uneven=True``
    the sizes are exchanged first (which waits for the device) and smaller ranks are padded on the way.
    """

    def __init__(self, local_rows: int, device: torch.device, group: Group = None, uneven: bool = False) -> None:
        self.group, self.world, self.rank = group, world_size(group), rank(group)
        if uneven and self.world > 1:
            sizes = torch.empty(self.world, dtype=torch.int64, device=device)
            _all_gather(sizes, torch.tensor([local_rows], device=device), group=group)
            self.sizes = sizes.tolist()
        else:
            self.sizes = [local_rows] * self.world
        self.start = sum(self.sizes[: self.rank])
        self.stop = self.start + local_rows
        self.total = sum(self.sizes)

    def __call__(self, rows: Tensor) -> Tensor:
        """(b, …) of each rank → (B, …), without gradient."""
        if self.world == 1:
            return rows
        most = max(self.sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(self.world * most, *rows.shape[1:])
        _all_gather(gathered, padded, group=self.group)
        if most * self.world == self.total:
            return gathered
        return torch.cat([part[:size] for part, size in zip(gathered.split(most), self.sizes)])

    def partial(self, rows: Tensor) -> Tensor:
        """Gather whose gradient arrives in parts: the backward pass sums over the ranks and hands each its rows.

        The sum is multiplied by the number of ranks: DistributedDataParallel averages the backbone's gradients, where
        the loss of the global batch calls for their sum.
        """
        return rows if self.world == 1 else _GatherPartial.apply(rows, self)

    def replicated(self, rows: Tensor) -> Tensor:
        """Gather whose gradient is whole on every rank: the backward pass takes this rank's rows, times the ranks.

        The factor is there because DistributedDataParallel averages over the ranks (see ``partial``).
        """
        return rows if self.world == 1 else _GatherReplicated.apply(rows, self)


class _GatherContext(FunctionCtx):
    gather: RowGather


class _GatherPartial(Function):
    @staticmethod
    def forward(ctx: _GatherContext, rows: Tensor, gather: RowGather) -> Tensor:
        ctx.gather = gather
        return gather(rows)

    @staticmethod
    def backward(ctx: _GatherContext, gradient: Tensor) -> tuple[Tensor, None]:
        gather = ctx.gather
        if len(set(gather.sizes)) > 1:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient, group=gather.group)
            return gradient[gather.start : gather.stop] * gather.world, None
        local = gradient.new_empty(gather.sizes[gather.rank], *gradient.shape[1:])
        _reduce_scatter(local, gradient.contiguous(), group=gather.group)
        return local.mul_(gather.world), None


class _GatherReplicated(Function):
    @staticmethod
    def forward(ctx: _GatherContext, rows: Tensor, gather: RowGather) -> Tensor:
        ctx.gather = gather
        return gather(rows)

    @staticmethod
    def backward(ctx: _GatherContext, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.gather.start : ctx.gather.stop] * ctx.gather.world, None


class _SumRanks(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, group: Group) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def max_ranks(value: Tensor, group: Group = None) -> Tensor:
    """Largest of the ranks' numbers, element by element; without gradient."""
    value = value.detach()
    if world_size(group) > 1:
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return value


def sum_ranks(value: Tensor, group: Group = None) -> Tensor:
    """Sum over the ranks of a value from which every rank goes on to compute the same: its gradient passes as it is."""
    return value if world_size(group) == 1 else _SumRanks.apply(value, group)
