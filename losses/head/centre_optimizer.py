"""SGD and AdamW for class centres, row by row: all rows, the rows drawn, or a tile within the backward pass."""

import torch
from torch import Tensor

from losses.head.centre_pass import Backward, OnCentreGradient
from losses.head.partial_fc import PartialFC
from losses.head.sampling import SampledClasses
from losses.head.tile_torch import Tile
from pipelines.common.errors import UserError


class CentreOptimizer:
    """Optimiser of the centres of a ``PartialFC``; create it before the first backward pass.

    The rules are ``torch.optim.SGD``'s (momentum, weight decay) and ``torch.optim.AdamW``'s. With sampling only the
    rows drawn are read and written: their weight decay, momentum and, for AdamW, step counts (bias correction) are
    their own.

    Three ways lead from a backward pass to an update:

    - plain: the gradient is kept, in ``head.weight.grad`` or, with sampling, here for the rows drawn alone, and
      ``step`` applies it;
    - ``fused``: each tile of centres is updated in the backward pass as soon as its gradient is known, so that the
      gradient of all centres never exists; ``step`` then only counts;
    - ``fused`` and ``deferred``: the backward pass computes the gradient of the embeddings and remembers the batch;
      ``step`` passes over the centres once more and updates each tile. A fourth more products than fused, the same
      memory, and the update may still be skipped (fp16) or fed by several batches (gradient accumulation).

    Args:
        lr: learning rate; set the attribute before a backward pass to change it.
        algorithm: ``sgd`` or ``adamw``.

    Attributes:
        grad_scale: the factor the loss was multiplied with (fp16); gradients are divided by it.
    """

    def __init__(
        self,
        head: PartialFC,
        *,
        lr: float,
        algorithm: str = "sgd",
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 5e-4,
        fused: bool = False,
        deferred: bool = False,
    ) -> None:
        if algorithm not in ("sgd", "adamw"):
            raise UserError(f"centres are optimised by 'sgd' or 'adamw', not {algorithm!r}")
        if deferred and not fused:
            raise UserError("a deferred update is a fused one: set fused too, or neither")
        if fused and head.mode == "dense":
            raise UserError("the dense head computes all gradients at once; a fused update needs the streamed one")
        self.head, self.lr, self.weight_decay, self.grad_scale = head, lr, weight_decay, 1.0
        self.momentum, self.betas, self.eps = momentum, betas, eps
        self.algorithm, self.fused, self.deferred = algorithm, fused, deferred
        weight = head.weight
        self.state: dict[str, Tensor] = {}
        if algorithm == "adamw":
            self.state["exp_avg"] = torch.zeros_like(weight, requires_grad=False)
            self.state["exp_avg_sq"] = torch.zeros_like(weight, requires_grad=False)
            self.state["steps"] = torch.zeros(len(weight), 1, device=weight.device)
        elif momentum:
            self.state["momentum"] = torch.zeros_like(weight, requires_grad=False)
        self._batches: list[Backward] = []
        self._drawn: list[tuple[SampledClasses, Tensor]] = []  # with the gradients of its rows
        head.attach(self._way())

    # -- from backward passes to rows and gradients --------------------------------------------------------------------

    def _way(self) -> OnCentreGradient | None:
        """What the head calls in a backward pass; None leaves the gradient in ``head.weight.grad``."""
        if self.fused:
            return self._defer if self.deferred else self._update_tiles
        return self._keep_drawn if self.head.mode == "streamed" and self.head.sample_rate < 1 else None

    def _update_tiles(self, backward: Backward, d_x: Tensor | None) -> None:
        for tile in backward.centre_pass.tiles():
            self._update_tile(tile, backward.tile_gradient(tile, d_x))

    def _defer(self, backward: Backward, d_x: Tensor | None) -> None:
        self._batches.append(backward)
        backward.embedding_gradient(d_x)

    def _keep_drawn(self, backward: Backward, d_x: Tensor | None) -> None:
        sampled = backward.centre_pass.sampled
        assert sampled is not None  # see ``_way``
        self._drawn.append((sampled, backward.centre_gradient(d_x)))

    @torch.no_grad()
    def step(self) -> None:
        """Apply what the backward passes since the last call left to be applied."""
        if self._batches:
            self._update_deferred()
        if self._drawn:
            (sampled, gradient), *more = self._drawn
            self._update(*(_merged(self._drawn) if more else (sampled.index, sampled.active, gradient)))
        if self.head.weight.grad is not None:
            self._update(slice(None), None, self.head.weight.grad)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget what the backward passes since the last ``step`` left (updates already made by ``fused`` stay)."""
        self._batches.clear()
        self._drawn.clear()
        self.head.weight.grad = None

    def _update_deferred(self) -> None:
        first, *more = self._batches
        if more and first.centre_pass.sampled is not None:
            raise UserError("a fused update over several sampled batches is not possible: unset fused")
        for tile in first.centre_pass.tiles():
            gradient = first.tile_gradient(tile)
            for batch in more:
                gradient += batch.tile_gradient(tile)
            self._update_tile(tile, gradient)

    def _update_tile(self, tile: Tile, gradient: Tensor) -> None:
        self._update(tile.index, tile.active, gradient, tile.inv_norm)

    @torch.no_grad()
    def _update(
        self, index: slice | Tensor, active: Tensor | None, gradient: Tensor, inv_norm: Tensor | None = None
    ) -> None:
        """Move some rows (n) and their state; see ``tile_torch.sgd_``."""
        arithmetic, state = self.head.arithmetic, {"weight": self.head.weight, **self.state}
        shared = dict(lr=self.lr, weight_decay=self.weight_decay, scale=self.grad_scale)
        if self.algorithm == "sgd":
            arithmetic.sgd_(state, index, active, gradient, inv_norm, momentum=self.momentum, **shared)
        else:
            arithmetic.adamw_(state, index, active, gradient, inv_norm, betas=self.betas, eps=self.eps, **shared)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """State tensors as DTensors sharded like the centres: loaded in place by ``torch.distributed.checkpoint``."""
        return {name: self.head.shard(tensor) for name, tensor in self.state.items()}


def _merged(drawn: list[tuple[SampledClasses, Tensor]]) -> tuple[Tensor, None, Tensor]:
    """Rows and the sums of their gradients over several samples (gradient accumulation; waits for the device)."""
    drawn_rows = torch.cat([sampled.drawn for sampled, _ in drawn])
    values = torch.cat(
        [gradient if sampled.active is None else gradient[sampled.active] for sampled, gradient in drawn]
    )
    unique, place = drawn_rows.unique(return_inverse=True)
    return unique, None, values.new_zeros(len(unique), values.shape[1]).index_add_(0, place, values)
