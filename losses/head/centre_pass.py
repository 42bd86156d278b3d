"""The pass over the class centres: what all other logits add up to, a tile of centres at a time, and its gradient.

Forward: a tile of centres is normalised and multiplied with the embeddings, and the exponentials are summed (where they
might leave float32, above the largest logit of their row so far), or what else the margin's reduction sums. Backward:
the tile's logits are computed again, now with the log-sum-exp known, and give the gradients of the embeddings and of
the tile, together or in passes of their own. So the (B, C) logits never exist as a whole. Where memory allows, a tile's
exponentials and what becomes of them are kept from pass to pass (``keep``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from losses.head.collective import Group, max_ranks, world_size
from losses.head.rows_torch import tangent_
from losses.head.sampling import SampledClasses
from losses.head.tile_torch import LOWEST, Tile, product, rebase_, shifted, softmax_entropy
from losses.margins.margin import BatchView, Margin


@dataclass
class CentrePass:
    """The centres of one rank that take part in a step, and where the own class of each batch row stands among them.

    Attributes:
        weight: (C_r, d) the shard, not normalised.
        target_row: (B,) int64, which row of the shard the batch row's class is; outside of it where it is none.
        sampled: the rows drawn, or None for all of them in order.
        size: centres a tile.
        dtype: type of the products' operands; sums are float32 always.
        arithmetic: ``losses.head.tile_torch`` or ``losses.head.tile_triton``.
        keep: of how many centres, from the first, the whole tiles among them are kept for the passes to come, and
            with them (B, n) numbers a tile that need not be computed again.
    """

    weight: Tensor
    target_row: Tensor
    sampled: SampledClasses | None
    size: int
    dtype: torch.dtype
    arithmetic: ModuleType
    keep: int = 0
    kept: list[Tile] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weight) if self.sampled is None else len(self.sampled.index)

    @cached_property
    def target_position(self) -> Tensor:
        """(B,) int64, place of each batch row's class in the pass; outside [0, length) where it is not in it."""
        if self.sampled is None or not len(self.weight):
            return self.target_row
        here = (self.target_row >= 0) & (self.target_row < len(self.weight))
        return torch.where(here, self.sampled.position[self.target_row.clamp(0, len(self.weight) - 1)], -1)

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
def reduce_others(
    x: Tensor, centre_pass: CentrePass, margin: Margin, batch: BatchView, entropy: bool, group: Group = None
) -> tuple[Tensor, Tensor | None]:
    """``margin.reduction`` over all classes but the own one, of all ranks, and what goes with it.

    Args:
        x: (B, d) unit embeddings in ``centre_pass.dtype``.
        entropy: whether to return the entropy of softmax(other).

    Returns:
        ``logsumexp``: (B,) float32 log Σ exp(other), -inf where there is no other class; (B,) the entropy, or None.
        ``softplus``: (B,) Σ softplus(other - bias); (B,) Σ sigmoid(other - bias), its derivative by -bias.
    """
    softplus = margin.reduction == "softplus"
    sums = torch.zeros(2 if entropy or softplus else 1, len(x), device=x.device)
    above_top = shifted(margin, entropy)
    top = torch.full_like(sums[0], LOWEST if above_top else 0.0)  # what the logits in the sums are above
    for tile in centre_pass.tiles():
        target_column, keep = centre_pass.target_position - tile.first, centre_pass.keeps(tile)
        part = centre_pass.arithmetic.class_sums(x, tile, target_column, margin, batch, entropy, keep)
        if isinstance(tile.top, Tensor):
            higher = torch.maximum(top, tile.top)
            sums, part, top = rebase_(sums, top, higher), rebase_(part, tile.top, higher), higher
        sums += part
    if above_top:
        higher = max_ranks(top, group)
        sums, top = rebase_(sums, top, higher), higher
    if world_size(group) > 1:
        dist.all_reduce(sums, group=group)
    if softplus:
        return sums[0], sums[1]
    return sums[0].log() + top, softmax_entropy(*sums) if entropy else None


@dataclass
class Backward:
    """The backward pass of one batch: from d loss/d reduced and d loss/d cos_y (B,) to embeddings and centres.

    The gradient of the unit embeddings is added to a ``d_x`` (B, d) float32 of the caller's; None where it is not
    wanted. A log-sum-exp in ``reduced`` is inf where there are no other classes. ``d_products`` are those that
    ``embedding_gradient`` kept, by their tile's first centre. ``own`` is the batch's sample where the pass is over more
    rows than that.
    """

    x: Tensor
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    reduced: Tensor
    d_reduced: Tensor
    d_cos_y: Tensor
    d_products: dict[int, Tensor] = field(default_factory=dict)
    own: SampledClasses | None = None

    def finite(self) -> Tensor:
        """() bool: whether the gradients are finite, given finite centres."""
        return torch.stack([value.isfinite().all() for value in (self.x, self.d_reduced, self.d_cos_y)]).all()

    def among(self, rows: SampledClasses) -> "Backward":
        """The same batch in a pass over ``rows``, which hold its own sample and more."""
        wider = replace(self.centre_pass, sampled=rows, keep=0, kept=[])
        return replace(self, centre_pass=wider, d_products={}, own=self.centre_pass.sampled)

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
        if self.own is not None:
            tile = replace(tile, active=self.own.drawn[tile.index])
        at, gradients = self.centre_pass, (self.reduced, self.d_reduced, self.d_cos_y)
        target_column = at.target_position - tile.first
        return at.arithmetic.d_product(self.x, tile, target_column, self.margin, self.batch, *gradients)


OnCentreGradient = Callable[[Backward, Tensor | None], None]


class _StreamedContext(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    on_centre_gradient: OnCentreGradient | None


class StreamedReduction(Function):
    """(cos_y, reduced) as differentiable functions of the unit embeddings (B, d) and the centres (C_r, d).

    What goes with the latter (see ``reduce_others``) has no gradient. ``cos_y`` comes in already summed over the ranks
    and goes out again so that its gradient meets that of ``reduced`` in a single pass. ``on_centre_gradient``, if
    given, is called with the batch's ``Backward`` and ``d_x``, which it has to fill; the centres then get no gradient.
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
        reduced, beside = reduce_others(x, centre_pass, margin, batch, entropy, group)
        ctx.save_for_backward(x, reduced)
        ctx.centre_pass, ctx.margin, ctx.batch, ctx.on_centre_gradient = centre_pass, margin, batch, on_centre_gradient
        if beside is not None:
            ctx.mark_non_differentiable(beside)
        return cos_y.clone(), reduced, beside

    @staticmethod
    @torch.no_grad()
    def backward(
        ctx: _StreamedContext, d_cos_y: Tensor, d_reduced: Tensor, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, reduced = ctx.saved_tensors
        # Rows without other classes have a log-sum-exp of -inf; their gradient is nothing, not NaN.
        reduced = reduced.masked_fill(reduced.isneginf(), torch.inf)
        backward = Backward(x, ctx.centre_pass, ctx.margin, ctx.batch, reduced, d_reduced, d_cos_y)
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
