"""SGD and AdamW for class centres, row by row: all rows, those drawn, or a tile as its gradient appears."""

import torch
from torch import Tensor

from losses.head.centre_pass import Backward, OnCentreGradient
from losses.head.partial_fc import PartialFC
from losses.head.sampling import SampledClasses
from pipelines.common.errors import UserError


class CentreOptimizer:
    """Optimiser of the centres of a ``PartialFC``; create it before the first backward pass.

    The rules are ``torch.optim.SGD``'s (momentum, weight decay) and ``torch.optim.AdamW``'s. With sampling only the
    rows drawn are read and written: their weight decay, momentum and, for AdamW, step counts (bias correction) are
    their own.

    No backward pass changes a centre, so that a step may be left out when all gradients are known. Two ways lead from
    the backward passes to an update:

    - plain: the gradient is kept, in ``head.weight.grad`` or, with sampling, here for the rows drawn alone, and
      ``step`` applies it;
    - ``fused``: the backward pass computes the gradient of the embeddings and remembers the batch; ``step`` passes over
      the centres once more and updates each tile, so that the gradient of all centres never exists. Where the tiles
      keep what they computed (see ``CentrePass.keep``) that takes no more products than plain, elsewhere a fourth more.

    Args:
        lr: learning rate; set the attribute before ``step`` to change it.
        algorithm: ``sgd`` or ``adamw``.

    Attributes:
        grad_scale: the factor the loss was multiplied with (fp16), a number or () tensor on the head's device;
            gradients are divided by it.
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
    ) -> None:
        if algorithm not in ("sgd", "adamw"):
            raise UserError(f"centres are optimised by 'sgd' or 'adamw', not {algorithm!r}")
        if fused and head.mode == "dense":
            raise UserError("the dense head computes all gradients at once; a fused update needs the streamed one")
        self.head, self.lr, self.weight_decay = head, lr, weight_decay
        self.grad_scale: float | Tensor = 1.0
        self.momentum, self.betas, self.eps = momentum, betas, eps
        self.algorithm, self.fused = algorithm, fused
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
            return self._remember
        return self._keep_drawn if self.head.mode == "streamed" and self.head.sample_rate < 1 else None

    def _remember(self, backward: Backward, d_x: Tensor | None) -> None:
        backward.embedding_gradient(d_x, keep=not self._batches)  # what one batch keeps is memory enough
        self._batches.append(backward)

    def _keep_drawn(self, backward: Backward, d_x: Tensor | None) -> None:
        sampled = backward.centre_pass.sampled
        assert sampled is not None  # see ``_way``
        self._drawn.append((sampled, backward.centre_gradient(d_x)))

    @torch.no_grad()
    def finite(self) -> Tensor:
        """() bool on the head's device: whether ``step`` would move this rank's centres by finite numbers."""
        parts = [batch.finite() for batch in self._batches]
        kept = [gradient for _, gradient in self._drawn]
        if self.head.weight.grad is not None:
            kept.append(self.head.weight.grad)
        parts += [gradient.sum().isfinite() for gradient in kept]  # one number that is not finite makes the sum so
        return torch.stack(parts).all() if parts else self.head.weight.new_ones((), dtype=torch.bool)

    def step(self, taken: Tensor | None = None) -> None:
        """Apply what the backward passes since the last call left to be applied.

        Args:
            taken: () bool on the head's device; where it is false nothing changes, not by a bit, and what was left is
                forgotten. A GPU is not waited for. None for true.
        """
        if taken is None or taken.device.type != "cpu":
            self._apply(taken)
        elif taken:
            self._apply(None)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget what the backward passes since the last ``step`` left."""
        self._batches.clear()
        self._drawn.clear()
        self.head.weight.grad = None

    @torch.no_grad()
    def _apply(self, taken: Tensor | None) -> None:
        if self._batches:
            self._update_tiles(taken)
        if self._drawn:
            (sampled, gradient), *more = self._drawn
            self._update_rows(*(_merged(self._drawn) if more else (sampled.index, sampled.active, gradient)), taken)
        if self.head.weight.grad is not None:
            self._update_rows(None, None, self.head.weight.grad, taken)

    def _update_tiles(self, taken: Tensor | None) -> None:
        first, *more = self._batches
        if more and first.centre_pass.sampled is not None:
            raise UserError("a fused update over several sampled batches is not possible: unset fused")
        for tile in first.centre_pass.tiles():
            gradient = first.tile_gradient(tile)
            for batch in more:
                gradient += batch.tile_gradient(tile)
            self._update(tile.index, tile.active, gradient, tile.inv_norm, taken)

    def _update_rows(self, rows: Tensor | None, active: Tensor | None, gradient: Tensor, taken: Tensor | None) -> None:
        """``_update`` of some rows (n), or all, a tile's size at a time: a rule may need copies of what it changes."""
        size = self.head.tile_size(gradient.shape[1])
        for first in range(0, len(gradient), size):
            part = slice(first, min(first + size, len(gradient)))
            index = part if rows is None else rows[part]
            self._update(index, None if active is None else active[part], gradient[part], None, taken)

    def _update(
        self,
        index: slice | Tensor,
        active: Tensor | None,
        gradient: Tensor,
        inv_norm: Tensor | None,
        taken: Tensor | None,
    ) -> None:
        """Move some rows (n) and their state; see ``tile_torch.sgd_``."""
        if taken is not None:
            active = taken.repeat(len(gradient)) if active is None else active & taken
        if isinstance(self.grad_scale, Tensor) or self.grad_scale != 1:
            gradient /= self.grad_scale
        arithmetic, state = self.head.arithmetic, {"weight": self.head.weight, **self.state}
        shared = dict(lr=self.lr, weight_decay=self.weight_decay)
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
