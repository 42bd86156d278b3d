"""The pass over the class centres: log-sum-exp of all other logits, a tile of centres at a time, and its gradient.

Forward: a tile of centres is normalised and multiplied with the embeddings, and the exponentials are summed under a
constant shift. Backward: the tile's logits are computed again, now with the log-sum-exp known, and give the gradients
of the embeddings and of the tile, together or in passes of their own. So the (B, C) logits never exist as a whole.
Where memory allows, a tile's exponentials and what becomes of them are kept from pass to pass (``keep``).
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
        dtype: type of the products' operands; sums are float32 always.
        arithmetic: ``losses.head.tile_torch`` or ``losses.head.tile_triton``.
        keep: of how many centres, from the first, the whole tiles among them are kept for the passes to come, and
            with them (B, n) numbers a tile that need not be computed again.
    """

    weight: Tensor
    target_position: Tensor
    sampled: SampledClasses | None
    size: int
    dtype: torch.dtype
    arithmetic: ModuleType
    keep: int = 0
    kept: list[Tile] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weight) if self.sampled is None else len(self.sampled.index)

    def tiles(self) -> Iterator[Tile]:
        yield from self.kept
        for first in range(self.size * len(self.kept), len(self), self.size):
            index: slice | Tensor = slice(first, min(first + self.size, len(self)))
            active = None
            if self.sampled is not None:
                active = None if self.sampled.active is None else self.sampled.active[index]
                index = self.sampled.index[index]
            tile = Tile(first, index, active, *self.arithmetic.load_centres(self.weight, index, self.dtype))
            if self.keeps(tile):
                self.kept.append(tile)
            yield tile

    def keeps(self, tile: Tile) -> bool:
        """Whether a tile is one of those kept."""
        return tile.first + len(tile) <= self.keep


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
        keep = centre_pass.keeps(tile)
        sums += centre_pass.arithmetic.exp_sums(x, tile, target_column, margin, batch, shift, entropy, keep)
    if world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    mean = sums[1] / sums[0].clamp(min=torch.finfo(torch.float32).tiny) + shift if entropy else None
    return sums[0].log() + shift, mean


@dataclass
class Backward:
    """The backward pass of one batch: from d loss/d lse and d loss/d cos_y (B,) to embeddings and centres.

    The gradient of the unit embeddings is added to a ``d_x`` (B, d) float32 of the caller's; None where it is not
    wanted. ``lse`` is inf where there are no other classes. ``d_products`` are those that ``embedding_gradient`` kept,
    by their tile's first centre.
    """

    x: Tensor
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    lse: Tensor
    d_lse: Tensor
    d_cos_y: Tensor
    d_products: dict[int, Tensor] = field(default_factory=dict)

    def finite(self) -> Tensor:
        """() bool: whether the gradients are finite, given finite centres."""
        return torch.stack([value.isfinite().all() for value in (self.x, self.d_lse, self.d_cos_y)]).all()

    def tile_gradient(self, tile: Tile, d_x: Tensor | None = None) -> Tensor:
        """The gradient of a tile's centres (n, d), and the tile's part of ``d_x``.

        The former is that of the loss once ``tangent_`` is applied, which the fused updates do as they read it.
        """
        d_product = self._d_product(tile)
        if d_x is not None:
            d_x += product(d_product, tile.centres)
        return product(d_product.T, self.x)

    def embedding_gradient(self, d_x: Tensor | None, keep: bool = False) -> None:
        """One pass for ``d_x`` alone, which may keep what another for the centres computes again without."""
        if d_x is None:
            return
        for tile in self.centre_pass.tiles():
            d_product = self._d_product(tile)
            d_x += product(d_product, tile.centres)
            if keep and self.centre_pass.keeps(tile):
                self.d_products[tile.first] = d_product

    def centre_gradient(self, d_x: Tensor | None) -> Tensor:
        """One pass for the gradient of the loss by all centres in the pass (n, d), and for ``d_x``."""
        weight = self.centre_pass.weight
        gradient = torch.empty(len(self.centre_pass), weight.shape[1], device=weight.device)
        for tile in self.centre_pass.tiles():
            of_tile = tangent_(self.tile_gradient(tile, d_x), weight[tile.index], tile.inv_norm)
            gradient[tile.first : tile.first + len(tile)] = of_tile
        return gradient

    def weight_gradient(self, d_x: Tensor | None) -> Tensor:
        """``centre_gradient`` as a gradient of the shard (C_r, d): sparse where its classes are sampled."""
        gradient, sampled = self.centre_gradient(d_x), self.centre_pass.sampled
        if sampled is None:
            return gradient
        shape = self.centre_pass.weight.shape
        return torch.sparse_coo_tensor(sampled.index[None], gradient, shape, check_invariants=False)

    def _d_product(self, tile: Tile) -> Tensor:
        if tile.first in self.d_products:
            return self.d_products.pop(tile.first)
        at, gradients, shift = self.centre_pass, (self.lse, self.d_lse, self.d_cos_y), self.margin.shift(self.batch)
        target_column = at.target_position - tile.first
        return at.arithmetic.d_product(self.x, tile, target_column, self.margin, self.batch, *gradients, shift)


OnCentreGradient = Callable[[Backward, Tensor | None], None]


class _StreamedContext(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    on_centre_gradient: OnCentreGradient | None


class StreamedSoftmax(Function):
    """(cos_y, lse) as differentiable functions of the unit embeddings (B, d) and the centres (C_r, d).

    ``cos_y`` comes in already summed over the ranks and goes out again so that its gradient meets that of ``lse`` in a
    single pass. ``on_centre_gradient``, if given, is called with the batch's ``Backward`` and ``d_x``, which it has to
    fill; the centres then get no gradient.
    """

    @staticmethod
    def forward(
        ctx: _StreamedContext,
        x: Tensor,
        weight: Tensor,
        cos_y: Tensor,
        centre_pass: CentrePass,
        margin: Margin,
        batch: BatchView,
        entropy: bool,
        group: Group,
        on_centre_gradient: OnCentreGradient | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x = x.to(centre_pass.dtype).contiguous()  # as the kernels read it
        lse, mean_logit = log_sum_exp(x, centre_pass, margin, batch, entropy, group)
        ctx.save_for_backward(x, lse)
        ctx.centre_pass, ctx.margin, ctx.batch, ctx.on_centre_gradient = centre_pass, margin, batch, on_centre_gradient
        if mean_logit is not None:
            ctx.mark_non_differentiable(mean_logit)
        return cos_y.clone(), lse, mean_logit

    @staticmethod
    @torch.no_grad()
    def backward(ctx: _StreamedContext, d_cos_y: Tensor, d_lse: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, lse = ctx.saved_tensors
        # Rows without other classes have lse = -inf; their gradient is nothing, not NaN.
        lse = lse.masked_fill(lse.isneginf(), torch.inf)
        backward = Backward(x, ctx.centre_pass, ctx.margin, ctx.batch, lse, d_lse, d_cos_y)
        wants_x, wants_weight, *others = ctx.needs_input_grad
        d_x = torch.zeros(x.shape, device=x.device) if wants_x else None
        d_weight = None
        if not wants_weight:
            backward.embedding_gradient(d_x)
        elif ctx.on_centre_gradient is None:
            d_weight = backward.weight_gradient(d_x)
        else:
            ctx.on_centre_gradient(backward, d_x)
        return d_x, d_weight, *(None for _ in others)
