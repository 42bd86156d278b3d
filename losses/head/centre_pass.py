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
        dtype: type of the products' operands; sums are float32 always.
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
            index: slice | Tensor = slice(first, min(first + self.size, len(self)))
            active = None
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


@dataclass
class Backward:
    """The backward pass of one batch: from d loss/d lse and d loss/d cos_y (B,) to embeddings and centres.

    The gradient of the unit embeddings is added to a ``d_x`` (B, d) float32 of the caller's; None where it is not
    wanted. ``lse`` is inf where there are no other classes.
    """

    x: Tensor
    centre_pass: CentrePass
    margin: Margin
    batch: BatchView
    lse: Tensor
    d_lse: Tensor
    d_cos_y: Tensor

    def tile_gradient(self, tile: Tile, d_x: Tensor | None = None) -> Tensor:
        """The gradient of a tile's centres (n, d), and the tile's part of ``d_x``.

        The former is that of the loss once ``tangent_`` is applied, which the fused updates do as they read it. The
        caller may then change the centres: ``d_x`` has had its part from them already.
        """
        d_product = self._d_product(tile)
        if d_x is not None:
            d_x += product(d_product, tile.centres)
        return product(d_product.T, self.x)

    def embedding_gradient(self, d_x: Tensor | None) -> None:
        """One pass for ``d_x`` alone."""
        if d_x is not None:
            for tile in self.centre_pass.tiles():
                d_x += product(self._d_product(tile), tile.centres)

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
        at, kept = self.centre_pass, {}
        if at.keep_exp:
            kept = dict(exp=at.exps[tile.first // at.size], shift=self.margin.shift(self.batch))
        gradients = self.lse, self.d_lse, self.d_cos_y
        target_column = at.target_position - tile.first
        return at.arithmetic.d_product(self.x, tile, target_column, self.margin, self.batch, *gradients, **kept)


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
