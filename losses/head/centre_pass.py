"""The pass over the class centres: log-sum-exp of all other logits, a tile of centres at a time, and its gradient.

Forward: a tile of centres is normalised and multiplied with the embeddings, and the exponentials are summed under a
constant shift. Backward: the tile's logits are computed again, now with the log-sum-exp known, and give the gradients
of the embeddings and of the tile, which may be applied at once. So the (B, C) logits never exist as a whole. On a CPU,
where products are slow, the exponentials may be kept for the backward pass (``keep_exp``).
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
from losses.head.sampling import SampledClasses
from losses.head.tile_torch import Tile, product, tangent_
from losses.margins.margin import BatchView, Margin


@dataclass
class CentrePass:
    """The centres of one rank that take part in a step, and where the own class of each batch row stands among them.

    Attributes:
        weight: (C_r, d) the shard, not normalised.
        target_position: (B,) int64, place of the row's class in the pass; outside [0, length) where it is not.
        sampled: the rows drawn, or None for all of them in order.
        size: centres a tile.
        dtype: type of the products' factors; sums are float32 always.
        arithmetic: ``losses.head.tile_torch`` or ``losses.head.tile_triton``.
        keep_exp: whether the forward pass leaves each tile's exponentials (B, n) in ``exps`` for the backward pass.
    """

    weight: Tensor
    target_position: Tensor
    sampled: SampledClasses | None
    size: int
    dtype: torch.dtype
    arithmetic: ModuleType
    keep_exp: bool = False
    exps: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weight) if self.sampled is None else len(self.sampled.index)

    def tiles(self) -> Iterator[Tile]:
        for first in range(0, len(self), self.size):
            index, active = slice(first, min(first + self.size, len(self))), None
            if self.sampled is not None:
                active = None if self.sampled.active is None else self.sampled.active[index]
                index = self.sampled.index[index]
            yield Tile(first, index, active, *self.arithmetic.load_centres(self.weight, index, self.dtype))


@torch.no_grad()
def log_sum_exp(
    x: Tensor, centre_pass: CentrePass, margin: Margin, batch: BatchView, entropy: bool, group: Group = None
) -> tuple[Tensor, Tensor | None]:
    """Over all classes but the own one, of all ranks.

    Args:
        x: (B, d) unit embeddings in ``centre_pass.dtype``.
        entropy: whether to return the mean logit too.

    Returns:
        (B,) float32 log Σ exp(other), -inf where there is no other class; (B,) Σ softmax(other)·other, or None.
    """
    shift = margin.shift(batch)
    sums = torch.zeros(2 if entropy else 1, len(x), device=x.device)
    for tile in centre_pass.tiles():
        target_column = centre_pass.target_position - tile.first
        part, exp = centre_pass.arithmetic.exp_sums(x, tile, target_column, margin, batch, shift, entropy)
        sums += part
        if centre_pass.keep_exp:
            centre_pass.exps.append(exp)
    if world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    mean = sums[1] / sums[0].clamp(min=torch.finfo(torch.float32).tiny) + shift if entropy else None
    return sums[0].log() + shift, mean


TileUpdate = Callable[[Tile, Tensor], None]


@dataclass
class Backward:
    """The backward pass of one batch: from d loss/d lse and d loss/d cos_y (B,) to embeddings and centres.

    ``lse`` is inf where there are no other classes.
    """

    x: Tensor
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    lse: Tensor
    d_lse: Tensor
    d_cos_y: Tensor

    def tile(self, tile: Tile, d_x: Tensor | None, centres: bool = True) -> Tensor | None:
        """Add the tile's part to ``d_x`` (B, d), if given; return the gradient of its centres (n, d), if wanted.

        The latter is not that of the loss until ``tangent_`` is applied, which the fused updates do as they read it.
        """
        of, kept = self.centre_pass, {}
        if of.keep_exp:
            kept = dict(exp=of.exps[tile.first // of.size], shift=self.margin.shift(self.batch))
        target_column, gradients = of.target_position - tile.first, (self.lse, self.d_lse, self.d_cos_y)
        d_product = of.arithmetic.d_product(self.x, tile, target_column, self.margin, self.batch, *gradients, **kept)
        if d_x is not None:
            d_x += product(d_product, tile.centres)
        return product(d_product.T, self.x) if centres else None

    @torch.no_grad()
    def run(self, embeddings: bool, update: TileUpdate | None) -> Tensor | None:
        """One pass. ``update`` takes each tile's gradient (see ``tile``) and may change the tile's centres."""
        d_x = torch.zeros(self.x.shape, device=self.x.device) if embeddings else None
        for tile in self.centre_pass.tiles():
            gradient = self.tile(tile, d_x, centres=update is not None)
            if update is not None:
                update(tile, gradient)
        return d_x

    def gradients(self, embeddings: bool) -> tuple[Tensor | None, Tensor]:
        """One pass; the gradients of the embeddings, if wanted, and of the centres in the pass (n, d)."""
        weight = self.centre_pass.weight
        values = torch.empty(len(self.centre_pass), weight.shape[1], device=weight.device)

        def keep(tile: Tile, gradient: Tensor) -> None:
            tangent_(gradient, weight[tile.index], tile.inv_norm)
            values[tile.first : tile.first + len(tile)] = gradient

        return self.run(embeddings, keep), values


class StreamedSoftmax(Function):
    """(cos_y, lse) as differentiable functions of the unit embeddings (B, d) and the centres (C_r, d).

    ``cos_y`` comes in already summed over the ranks and goes out again so that its gradient meets that of ``lse`` in a
    single pass. ``on_centre_gradient`` takes the backward pass instead of a gradient of the centres being returned
    (fused updates).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        cos_y: Tensor,
        centre_pass: CentrePass,
        margin: Margin,
        batch: BatchView,
        entropy: bool,
        group: Group,
        on_centre_gradient: Callable[[Backward, bool], Tensor | None] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x = x.to(centre_pass.dtype)
        lse, mean_logit = log_sum_exp(x, centre_pass, margin, batch, entropy, group)
        ctx.save_for_backward(x, lse)
        ctx.centre_pass, ctx.margin, ctx.batch, ctx.on_centre_gradient = centre_pass, margin, batch, on_centre_gradient
        if mean_logit is not None:
            ctx.mark_non_differentiable(mean_logit)
        return cos_y.clone(), lse, mean_logit

    @staticmethod
    def backward(ctx: FunctionCtx, d_cos_y: Tensor, d_lse: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, lse = ctx.saved_tensors
        # Rows without other classes have lse = -inf; their gradient is nothing, not NaN.
        lse = lse.masked_fill(lse.isneginf(), torch.inf)
        backward = Backward(x, ctx.centre_pass, ctx.margin, ctx.batch, lse, d_lse, d_cos_y)
        embeddings, centres = ctx.needs_input_grad[:2]
        d_weight = None
        if centres and ctx.on_centre_gradient is not None:
            d_x = ctx.on_centre_gradient(backward, embeddings)
        elif centres:
            d_x, d_weight = backward.gradients(embeddings)
            if ctx.centre_pass.sampled is not None:
                index = ctx.centre_pass.sampled.index[None]
                shape = ctx.centre_pass.weight.shape
                d_weight = torch.sparse_coo_tensor(index, d_weight, shape, check_invariants=False)
        else:
            d_x = backward.run(embeddings, None)
        return d_x, d_weight, *(None,) * 7
