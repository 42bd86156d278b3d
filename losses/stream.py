"""The pass over the class centres: log-sum-exp of all other logits, a tile of centres at a time, and its gradient.

Forward: a tile of centres is normalised and multiplied with the embeddings, and the exponentials are summed under a
constant shift. Backward: the tile's logits are computed again, now with the log-sum-exp known, and give the gradients
of the embeddings and of the tile, which may be applied at once. So the (B, C) logits never exist, but where a walk
``keeps``: where a product costs more than memory, it keeps the exponentials, (B, C) numbers, for the backward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from losses.collective import Group, world_size
from losses.margin import Margin, Rows
from losses.sampling import Sample

_TINY = 1e-12


@dataclass
class Tile:
    """Some centres of the shard.

    Attributes:
        first: place of the first one in the walk.
        rows: which rows of the shard they are.
        live: (n, 1) bool, false for rows that do not take part; None if all do.
    """

    first: int
    rows: slice | Tensor
    live: Tensor | None


@dataclass
class Walk:
    """The centres of one rank that take part in a step, and where the own class of each batch row stands among them.

    Attributes:
        weight: (C_r, d) the shard, not normalised.
        slot: (B,) int64, place of the row's class in the walk; outside [0, length) where it is not.
        sample: the rows drawn, or None for all of them in order.
        size: centres a tile.
        dtype: type of the products' factors; sums are float32 always.
        keeps: whether the forward pass leaves each tile's exponentials (B, n) in ``kept`` for the backward pass.
    """

    weight: Tensor
    slot: Tensor
    sample: Sample | None
    size: int
    dtype: torch.dtype
    keeps: bool = False
    kept: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weight) if self.sample is None else len(self.sample.index)

    def tiles(self) -> Iterator[Tile]:
        for first in range(0, len(self), self.size):
            stop = min(first + self.size, len(self))
            if self.sample is None:
                yield Tile(first, slice(first, stop), None)
            else:
                yield Tile(first, self.sample.index[first:stop], self.sample.live[first:stop, None])

    def own(self, tile: Tile, count: int) -> tuple[Tensor, Tensor]:
        """(B, 1) column of each row's own class in the tile, and (B, 1) whether it is there."""
        column = self.slot[:, None] - tile.first
        return column.clamp(0, count - 1), (column >= 0) & (column < count)


def inverse_norm(weight: Tensor) -> Tensor:
    """(n, d) rows → (n, 1) inverses of their norms."""
    return torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=_TINY).reciprocal()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, from factors of their own type."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _logits(
    weight: Tensor, inverse: Tensor, x: Tensor, margin: Margin, rows: Rows, base: Tensor, sloped: bool
) -> tuple[Tensor, Tensor | float]:
    """(B, n) logits of a tile above ``base`` (() or (B, 1)), and their derivative by the cosine where ``sloped``."""
    cos = product(x, weight.T)
    if margin.linear:
        return torch.addcmul(-base, cos, inverse.T, value=margin.s, out=cos), margin.s
    cos.mul_(inverse.T)
    if not sloped:
        return margin.others(cos, rows).sub_(base), 0.0
    with torch.enable_grad():
        cos.requires_grad_()
        logits = margin.others(cos, rows)
        (slope,) = torch.autograd.grad(logits.sum(), cos)
    return logits.detach().sub_(base), slope


@torch.no_grad()
def log_sum_exp(
    x: Tensor, walk: Walk, margin: Margin, rows: Rows, entropy: bool, group: Group = None
) -> tuple[Tensor, Tensor | None]:
    """Over all classes but the own one, of all ranks.

    Args:
        x: (B, d) unit embeddings in ``walk.dtype``.
        entropy: whether to return the mean logit too.

    Returns:
        (B,) float32 log Σ exp(other), -inf where there is no other class; (B,) Σ softmax(other)·other, or None.
    """
    shift = margin.shift(rows)
    sums = torch.zeros(2 if entropy else 1, len(x), device=x.device)
    for tile in walk.tiles():
        weight = walk.weight[tile.rows]
        logits, _ = _logits(weight.to(walk.dtype), inverse_norm(weight), x, margin, rows, shift, sloped=False)
        column, inside = walk.own(tile, len(weight))
        exp = logits.exp() if entropy else logits.exp_()
        exp.scatter_(1, column, exp.gather(1, column).masked_fill_(inside, 0.0))
        if tile.live is not None:
            exp.mul_(tile.live.T)
        sums[0] += exp.sum(1)
        if walk.keeps:
            walk.kept.append(exp)
        if entropy:
            sums[1] += logits.mul_(exp).sum(1)
    if world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    mean = sums[1] / sums[0].clamp(min=torch.finfo(torch.float32).tiny) + shift if entropy else None
    return sums[0].log() + shift, mean


Sink = Callable[[Tile, Tensor], None]


@dataclass
class Pullback:
    """The backward pass of one batch: from d loss/d lse and d loss/d cos_y (B,) to embeddings and centres."""

    x: Tensor
    walk: Walk
    margin: Margin
    rows: Rows
    lse: Tensor
    d_lse: Tensor
    d_cos_y: Tensor

    def tile(self, tile: Tile, d_x: Tensor | None, centres: bool = True) -> Tensor | None:
        """Add the tile's part to ``d_x`` (B, d), if given; return the gradient of its centres (n, d), if wanted."""
        weight = self.walk.weight[tile.rows]
        factor, inverse = weight.to(self.walk.dtype), inverse_norm(weight)
        # Rows without other classes have lse = -inf; their gradient is nothing, not NaN.
        lse = self.lse.masked_fill(self.lse.isneginf(), torch.inf)[:, None]
        if self.walk.keeps:
            scale = (self.margin.shift(self.rows) - lse).exp() * (self.d_lse[:, None] * self.margin.s)
            d_cos = self.walk.kept[tile.first // self.walk.size] * scale
        else:
            logits, slope = _logits(factor, inverse, self.x, self.margin, self.rows, lse, sloped=True)
            d_cos = logits.exp_().mul_(self.d_lse[:, None] * slope)
            if tile.live is not None:
                d_cos.mul_(tile.live.T)
        column, inside = self.walk.own(tile, len(weight))
        d_cos.scatter_(1, column, torch.where(inside, self.d_cos_y[:, None], d_cos.gather(1, column)))
        d_product = d_cos.mul_(inverse.T).to(self.walk.dtype)
        if d_x is not None:
            d_x += product(d_product, factor)
        if not centres:
            return None
        d_weight = product(d_product.T, self.x)
        radial = (d_weight * weight).sum(1, keepdim=True).mul_(inverse.square())
        return d_weight.addcmul_(weight, radial, value=-1)

    @torch.no_grad()
    def run(self, embeddings: bool, sink: Sink | None) -> Tensor | None:
        """Walk once. ``sink`` takes each tile's gradient and may change the tile's centres."""
        d_x = torch.zeros(self.x.shape, device=self.x.device) if embeddings else None
        for tile in self.walk.tiles():
            gradient = self.tile(tile, d_x, centres=sink is not None)
            if sink is not None:
                sink(tile, gradient)
        return d_x


class Stream(Function):
    """(cos_y, lse) as differentiable functions of the unit embeddings (B, d) and the centres (C_r, d).

    ``cos_y`` comes in already summed over the ranks and goes out again so that its gradient meets that of ``lse`` in a
    single walk. ``consume`` takes the pullback instead of a gradient of the centres being returned (fused updates).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        cos_y: Tensor,
        walk: Walk,
        margin: Margin,
        rows: Rows,
        entropy: bool,
        group: Group,
        consume: Callable[[Pullback, bool], Tensor | None] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x = x.to(walk.dtype)
        lse, mean_logit = log_sum_exp(x, walk, margin, rows, entropy, group)
        ctx.save_for_backward(x, lse)
        ctx.walk, ctx.margin, ctx.rows, ctx.consume = walk, margin, rows, consume
        if mean_logit is not None:
            ctx.mark_non_differentiable(mean_logit)
        return cos_y.clone(), lse, mean_logit

    @staticmethod
    def backward(ctx: FunctionCtx, d_cos_y: Tensor, d_lse: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, lse = ctx.saved_tensors
        pullback = Pullback(x, ctx.walk, ctx.margin, ctx.rows, lse, d_lse, d_cos_y)
        embeddings, centres = ctx.needs_input_grad[:2]
        d_weight = None
        if centres and ctx.consume is not None:
            d_x = ctx.consume(pullback, embeddings)
        elif centres:
            d_x, d_weight = _with_gradient(pullback, embeddings)
        else:
            d_x = pullback.run(embeddings, None)
        return d_x, d_weight, *(None,) * 7


def _with_gradient(pullback: Pullback, embeddings: bool) -> tuple[Tensor | None, Tensor]:
    """Walk and keep the gradient of the centres: dense, or sparse in the rows that were drawn."""
    walk = pullback.walk
    values = torch.empty(len(walk), walk.weight.shape[1], device=walk.weight.device)

    def keep(tile: Tile, gradient: Tensor) -> None:
        values[tile.first : tile.first + len(gradient)] = gradient

    d_x = pullback.run(embeddings, keep)
    if walk.sample is None:
        return d_x, values
    index = walk.sample.index[None]
    return d_x, torch.sparse_coo_tensor(index, values, walk.weight.shape, check_invariants=False)
