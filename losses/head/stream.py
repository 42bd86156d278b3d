"""The pass over the class centres: log-sum-exp of all other logits, a tile of centres at a time, and its gradient.

Forward: a tile of centres is normalised and multiplied with the embeddings, and the exponentials are summed under a
constant shift. Backward: the tile's logits are computed again, now with the log-sum-exp known, and give the gradients
of the embeddings and of the tile, which may be applied at once. So the (B, C) logits never exist, but where a walk
``keeps``: where a product costs more than memory, it keeps the exponentials, (B, C) numbers, for the backward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from losses.head.collective import Group, world_size
from losses.head.sampling import Sample
from losses.head.tile_torch import Tile, product, tangent_
from losses.margins.margin import Margin, Rows


@dataclass
class Walk:
    """The centres of one rank that take part in a step, and where the own class of each batch row stands among them.

    Attributes:
        weight: (C_r, d) the shard, not normalised.
        slot: (B,) int64, place of the row's class in the walk; outside [0, length) where it is not.
        sample: the rows drawn, or None for all of them in order.
        size: centres a tile.
        dtype: type of the products' factors; sums are float32 always.
        arithmetic: ``losses.head.tile_torch`` or ``losses.head.tile_triton``.
        keeps: whether the forward pass leaves each tile's exponentials (B, n) in ``kept`` for the backward pass.
    """

    weight: Tensor
    slot: Tensor
    sample: Sample | None
    size: int
    dtype: torch.dtype
    arithmetic: ModuleType
    keeps: bool = False
    kept: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weight) if self.sample is None else len(self.sample.index)

    def tiles(self) -> Iterator[Tile]:
        for first in range(0, len(self), self.size):
            rows, live = slice(first, min(first + self.size, len(self))), None
            if self.sample is not None:
                live = None if self.sample.live is None else self.sample.live[rows]
                rows = self.sample.index[rows]
            yield Tile(first, rows, live, *self.arithmetic.factors(self.weight, rows, self.dtype))


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
        part, exp = walk.arithmetic.exp_sums(x, tile, walk.slot - tile.first, margin, rows, shift, entropy)
        sums += part
        if walk.keeps:
            walk.kept.append(exp)
    if world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    mean = sums[1] / sums[0].clamp(min=torch.finfo(torch.float32).tiny) + shift if entropy else None
    return sums[0].log() + shift, mean


Sink = Callable[[Tile, Tensor], None]


@dataclass
class Pullback:
    """The backward pass of one batch: from d loss/d lse and d loss/d cos_y (B,) to embeddings and centres.

    ``lse`` is inf where there are no other classes.
    """

    x: Tensor
    walk: Walk
    margin: Margin
    rows: Rows
    lse: Tensor
    d_lse: Tensor
    d_cos_y: Tensor

    def tile(self, tile: Tile, d_x: Tensor | None, centres: bool = True) -> Tensor | None:
        """Add the tile's part to ``d_x`` (B, d), if given; return the gradient of its centres (n, d), if wanted.

        The latter is not that of the loss until ``tangent_`` is applied, which the fused updates do as they read it.
        """
        kept = {}
        if self.walk.keeps:
            kept = dict(exp=self.walk.kept[tile.first // self.walk.size], shift=self.margin.shift(self.rows))
        column, gradients = self.walk.slot - tile.first, (self.lse, self.d_lse, self.d_cos_y)
        d_product = self.walk.arithmetic.d_product(self.x, tile, column, self.margin, self.rows, *gradients, **kept)
        if d_x is not None:
            d_x += product(d_product, tile.factor)
        return product(d_product.T, self.x) if centres else None

    @torch.no_grad()
    def run(self, embeddings: bool, sink: Sink | None) -> Tensor | None:
        """Walk once. ``sink`` takes each tile's gradient (see ``tile``) and may change the tile's centres."""
        d_x = torch.zeros(self.x.shape, device=self.x.device) if embeddings else None
        for tile in self.walk.tiles():
            gradient = self.tile(tile, d_x, centres=sink is not None)
            if sink is not None:
                sink(tile, gradient)
        return d_x

    def gradients(self, embeddings: bool) -> tuple[Tensor | None, Tensor]:
        """Walk once; the gradients of the embeddings, if wanted, and of the centres in the walk (n, d)."""
        values = torch.empty(len(self.walk), self.walk.weight.shape[1], device=self.walk.weight.device)

        def keep(tile: Tile, gradient: Tensor) -> None:
            tangent_(gradient, self.walk.weight[tile.rows], tile.inverse)
            values[tile.first : tile.first + len(tile)] = gradient

        return self.run(embeddings, keep), values


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
        # Rows without other classes have lse = -inf; their gradient is nothing, not NaN.
        lse = lse.masked_fill(lse.isneginf(), torch.inf)
        pullback = Pullback(x, ctx.walk, ctx.margin, ctx.rows, lse, d_lse, d_cos_y)
        embeddings, centres = ctx.needs_input_grad[:2]
        d_weight = None
        if centres and ctx.consume is not None:
            d_x = ctx.consume(pullback, embeddings)
        elif centres:
            d_x, d_weight = pullback.gradients(embeddings)
            if ctx.walk.sample is not None:
                index = ctx.walk.sample.index[None]
                d_weight = torch.sparse_coo_tensor(index, d_weight, ctx.walk.weight.shape, check_invariants=False)
        else:
            d_x = pullback.run(embeddings, None)
        return d_x, d_weight, *(None,) * 7
