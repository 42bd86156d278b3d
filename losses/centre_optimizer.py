"""SGD and AdamW for class centres, row by row: all rows, the rows drawn, or a tile within the backward pass."""

import torch
from torch import Tensor

from losses.partial_fc import PartialFC
from losses.stream import Pullback, Tile


class CentreOptimizer:
    """Optimiser of the centres of a ``PartialFC``; create it before the first backward pass.

    The rules are ``torch.optim.SGD``'s (momentum, weight decay) and ``torch.optim.AdamW``'s. With sampling only the
    rows drawn are read and written: their weight decay, momentum and, for AdamW, step counts (bias correction) are
    their own.

    Three ways lead from a backward pass to an update:

    - plain: the gradient is kept and ``step`` applies it;
    - ``fused``: each tile of centres is updated in the backward pass as soon as its gradient is known, so that the
      gradient of all centres never exists; ``step`` then only counts;
    - ``fused`` and ``deferred``: the backward pass computes the gradient of the embeddings and remembers the batch;
      ``step`` walks the centres once more and updates each tile. A fourth more products than fused, the same
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
            raise ValueError(f"centres are optimised by 'sgd' or 'adamw', not {algorithm!r}")
        if deferred and not fused:
            raise ValueError("a deferred update is a fused one: set fused too, or neither")
        if fused and head.mode == "dense":
            raise ValueError("the dense head computes all gradients at once; a fused update needs the streamed one")
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
        self._batches: list[Pullback] = []
        self._drawn: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, live, gradients
        if head.mode == "streamed" and (fused or head.sample_rate < 1):
            head.consume = self._consume

    # -- from backward passes to rows and gradients --------------------------------------------------------------------

    def _consume(self, pullback: Pullback, embeddings: bool) -> Tensor | None:
        if self.deferred:
            self._batches.append(pullback)
            return pullback.run(embeddings, None)
        if self.fused:
            return pullback.run(embeddings, self._update)
        values = []
        d_x = pullback.run(embeddings, lambda _, gradient: values.append(gradient))
        sample = pullback.walk.sample
        self._drawn.append((sample.index, sample.live[:, None], torch.cat(values)))
        return d_x

    @torch.no_grad()
    def step(self) -> None:
        """Apply what the backward passes since the last call left to be applied."""
        if self._batches:
            self._walk_batches()
        if self._drawn:
            rows, live, gradient = self._drawn[0] if len(self._drawn) == 1 else _merged(self._drawn)
            self._update(Tile(0, rows, live), gradient)
        if self.head.weight.grad is not None:
            gradient = self.head.weight.grad
            self._update(Tile(0, slice(None), None), gradient)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget what the backward passes since the last ``step`` left (updates already made by ``fused`` stay)."""
        self._batches.clear()
        self._drawn.clear()
        self.head.weight.grad = None

    def _walk_batches(self) -> None:
        first, *more = self._batches
        if more and first.walk.sample is not None:
            raise ValueError("a fused update over several sampled batches is not possible: unset fused")
        for tile in first.walk.tiles():
            gradient = first.tile(tile, None)
            for batch in more:
                gradient += batch.tile(tile, None)
            self._update(tile, gradient)

    # -- the update of some rows ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _update(self, tile: Tile, gradient: Tensor) -> None:
        """Move the rows of a tile and their state. Rows that are not live keep both, bit for bit."""
        if self.grad_scale != 1:
            gradient = gradient / self.grad_scale
        tensors = {"weight": self.head.weight, **self.state}
        if isinstance(tile.rows, slice):
            self._rule({name: tensor[tile.rows] for name, tensor in tensors.items()}, gradient)
            return
        old = {name: tensor[tile.rows] for name, tensor in tensors.items()}
        new = {name: rows.clone() for name, rows in old.items()}
        self._rule(new, gradient)
        for name, tensor in tensors.items():
            tensor[tile.rows] = torch.where(tile.live, new[name], old[name])

    def _rule(self, rows: dict[str, Tensor], gradient: Tensor) -> None:
        """Update ``rows`` in place; the gradient is used up."""
        weight = rows["weight"]
        if self.algorithm == "sgd":
            gradient.add_(weight, alpha=self.weight_decay)
            if self.momentum:
                momentum = rows["momentum"]
                gradient = torch.add(gradient, momentum, alpha=self.momentum, out=momentum)
            weight.sub_(gradient, alpha=self.lr)
            return
        first, second = self.betas
        steps = rows["steps"].add_(1)
        weight.mul_(1 - self.lr * self.weight_decay)
        mean = rows["exp_avg"].lerp_(gradient, 1 - first)
        square = rows["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        denominator = (square / (1 - second**steps)).sqrt_().add_(self.eps)
        weight.sub_(self.lr * mean / ((1 - first**steps) * denominator))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """State tensors as DTensors sharded like the centres: loaded in place by ``torch.distributed.checkpoint``."""
        return {name: self.head.shard(tensor) for name, tensor in self.state.items()}


def _merged(drawn: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of several samples by row (gradient accumulation; waits for the device)."""
    rows = torch.cat([index[live[:, 0]] for index, live, _ in drawn])
    values = torch.cat([gradient[live[:, 0]] for _, live, gradient in drawn])
    unique, place = rows.unique(return_inverse=True)
    gradient = values.new_zeros(len(unique), values.shape[1]).index_add_(0, place, values)
    return unique, torch.ones(len(unique), 1, dtype=torch.bool, device=rows.device), gradient
