"""SGD, AdamW and Lion for class centres, row by row: all rows, those drawn, or a tile as its gradient appears."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

import losses.head.tile_torch
from losses.head.centre_pass import Backward, OnCentreGradient
from losses.head.partial_fc import PartialFC
from losses.head.rows_torch import CentreGradient
from losses.head.sampling import SampledClasses, union
from pipelines.common.errors import UserError


class CentreOptimizer:
    """Optimiser of the centres of a ``PartialFC``; create it before the first backward pass.

    The rules are ``torch.optim.SGD``'s (momentum, weight decay), ``torch.optim.AdamW``'s, and Lion's (Chen et al.,
    2023, algorithm 2). With sampling only the rows drawn are read and written: their weight decay, momentum and, for
    AdamW, step counts (bias correction) are their own. The parameters of the margin, if it has any, are moved by the
    same rule, without weight decay.

    No backward pass changes a centre, so that a step may be left out when all gradients are known. Two ways lead from
    the backward passes to an update:

    - plain: the gradient is kept, in ``head.weight.grad`` or, with sampling, here for the rows drawn alone, and
      ``step`` applies it;
    - ``fused``: the backward pass computes the gradient of the embeddings and remembers the batch; ``step`` passes over
      the centres once more and updates each tile, so that the gradient of all centres never exists. Where the tiles
      keep what they computed (see ``CentrePass.keep``) that takes no more products than plain, elsewhere and over
      several sampled batches up to a third more.

    Args:
        lr: learning rate; set the attribute before ``step`` to change it.
        algorithm: ``sgd``, ``adamw`` or ``lion``.
        momentum: of SGD.
        betas: of AdamW and Lion; None for (0.9, 0.999) and (0.9, 0.99).
        eps: of AdamW.

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
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 5e-4,
        fused: bool = False,
    ) -> None:
        if algorithm not in ("sgd", "adamw", "lion"):
            raise UserError(f"centres are optimised by 'sgd', 'adamw' or 'lion', not {algorithm!r}")
        if fused and head.mode == "dense":
            raise UserError("the dense head computes all gradients at once; a fused update needs the streamed one")
        self.head, self.lr, self.weight_decay = head, lr, weight_decay
        self.grad_scale: float | Tensor = 1.0
        self.momentum, self.eps = momentum, eps
        self.betas = betas or ((0.9, 0.99) if algorithm == "lion" else (0.9, 0.999))
        self.algorithm, self.fused = algorithm, fused
        self.state = self._initial_state(head.weight)
        self.margin_state = {name: self._initial_state(p.view(1, -1)) for name, p in head.margin.named_parameters()}
        self._batches: list[Backward] = []
        self._drawn: list[tuple[SampledClasses, Tensor]] = []  # with the gradients of its rows
        head.attach(self._way())

    def _initial_state(self, weight: Tensor) -> dict[str, Tensor]:
        """What the rule remembers of (n, d) weights."""
        if self.algorithm == "adamw":
            steps = torch.zeros(len(weight), 1, device=weight.device)
            return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight), "steps": steps}
        if self.algorithm == "lion":
            return {"exp_avg": torch.zeros_like(weight)}
        return {"momentum": torch.zeros_like(weight)} if self.momentum else {}

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
        kept += [p.grad for p in (self.head.weight, *self.head.margin.parameters()) if p.grad is not None]
        parts += [gradient.sum().isfinite() for gradient in kept]  # one number that is not finite makes the sum so
        return torch.stack(parts).all() if parts else self.head.weight.new_ones((), dtype=torch.bool)

    def step(self, taken: Tensor | None = None) -> None:
        """Apply what the backward passes since the last call left to be applied, and count the step.

        Args:
            taken: () bool on the head's device; where it is false nothing changes, not by a bit, and what was left is
                forgotten. A GPU is not waited for. None for true.
        """
        if taken is None or taken.device.type != "cpu":
            self._apply(taken)
        elif taken:
            self._apply(None)
        self.zero_grad()
        self.head.step += 1

    def zero_grad(self) -> None:
        """Forget what the backward passes since the last ``step`` left."""
        self._batches.clear()
        self._drawn.clear()
        for parameter in (self.head.weight, *self.head.margin.parameters()):
            parameter.grad = None

    @torch.no_grad()
    def _apply(self, taken: Tensor | None) -> None:
        if self._batches:
            self._update_tiles(taken)
        if self._drawn:
            rows, gradient = _together(self._drawn)
            self._update_rows(rows.index, rows.active, gradient, taken)
        if self.head.weight.grad is not None:
            self._update_rows(None, None, self.head.weight.grad, taken)
        for name, parameter in self.head.margin.named_parameters():
            if parameter.grad is not None:
                state = {"weight": parameter.view(1, -1), **self.margin_state[name]}
                active = None if taken is None else taken.view(1)
                of_margin = CentreGradient(slice(0, 1), active, parameter.grad.view(1, -1))
                self._move(losses.head.tile_torch, state, of_margin, weight_decay=0.0)

    def _update_tiles(self, taken: Tensor | None) -> None:
        batches = self._batches
        samples = [batch.centre_pass.sampled for batch in batches]
        if len(batches) > 1 and samples[0] is not None:
            rows = union([sampled for sampled in samples if sampled is not None])
            batches = [batch.among(rows) for batch in batches]
        for tile in batches[0].centre_pass.tiles():
            total = batches[0].tile_gradient(tile)
            for batch in batches[1:]:
                total += batch.tile_gradient(tile)
            self._update(CentreGradient(tile.index, tile.active, total, tile.inv_norm), taken)

    def _update_rows(self, rows: Tensor | None, active: Tensor | None, gradient: Tensor, taken: Tensor | None) -> None:
        """``_update`` of some rows (n), or all, a tile's size at a time: a rule may need copies of what it changes."""
        size = self.head.tile_size(gradient.shape[1])
        for first in range(0, len(gradient), size):
            part = slice(first, min(first + size, len(gradient)))
            index = part if rows is None else rows[part]
            self._update(CentreGradient(index, None if active is None else active[part], gradient[part]), taken)

    def _update(self, gradient: CentreGradient, taken: Tensor | None) -> None:
        """Move the gradient's rows and their state."""
        if taken is not None:
            active = taken.repeat(len(gradient.values)) if gradient.active is None else gradient.active & taken
            gradient = replace(gradient, active=active)
        state = {"weight": self.head.weight, **self.state}
        self._move(self.head.arithmetic, state, gradient, self.weight_decay)

    def _move(
        self, arithmetic: ModuleType, state: dict[str, Tensor], gradient: CentreGradient, weight_decay: float
    ) -> None:
        """The rule; see ``rows_torch.sgd_``."""
        if isinstance(self.grad_scale, Tensor) or self.grad_scale != 1:
            gradient.values.div_(self.grad_scale)
        shared = dict(lr=self.lr, weight_decay=weight_decay)
        if self.algorithm == "sgd":
            arithmetic.sgd_(state, gradient, momentum=self.momentum, **shared)
        elif self.algorithm == "lion":
            arithmetic.lion_(state, gradient, betas=self.betas, **shared)
        else:
            arithmetic.adamw_(state, gradient, betas=self.betas, eps=self.eps, **shared)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """State tensors, which ``torch.distributed.checkpoint`` loads in place; DTensors where the centres are such."""
        of_margin = {
            f"margin.{name}.{key}": tensor for name, state in self.margin_state.items() for key, tensor in state.items()
        }
        return {name: self.head.shard(tensor) for name, tensor in self.state.items()} | of_margin


def _together(drawn: list[tuple[SampledClasses, Tensor]]) -> tuple[SampledClasses, Tensor]:
    """The rows of several samples, and (n, d) the sums of their gradients."""
    if len(drawn) == 1:
        return drawn[0]
    rows = union([sampled for sampled, _ in drawn])
    total = drawn[0][1].new_zeros(len(rows.index), drawn[0][1].shape[1])
    for sampled, gradient in drawn:
        # Rows that only fill a sample may stand past the end of all; they add 0.
        total.index_add_(0, rows.position[sampled.index].clamp(max=len(total) - 1), gradient)
    return rows, total
