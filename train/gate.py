"""Which steps are taken: one whose loss or gradient is not finite is left out, on all ranks and in all parts alike."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from losses import CentreOptimizer


class StepGate:
    """Decides after every backward pass whether the step is taken.

    The decision is made and carried out on the device: the host does not wait for it. In fp16 the loss is multiplied by
    a scale that halves with every step left out and doubles after ``growth_interval`` good ones (Micikevicius et al.,
    2018).

    Attributes:
        scale: () float32, the factor of the loss; 1 unless ``scaled``.
        skipped: (2,) int64, the steps left out so far, and those in a row up to now.
    """

    growth_interval = 2000

    def __init__(self, device: torch.device, *, scaled: bool) -> None:
        self.scaled = scaled
        self.scale = torch.full((), 2.0**16 if scaled else 1.0, device=device)
        self.skipped = torch.zeros(2, dtype=torch.int64, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)  # since the scale has changed

    @torch.no_grad()
    def decide(self, parameters: Sequence[nn.Parameter], clip: float | None, *finite: Tensor) -> Tensor:
        """Whether the step is taken, () bool, the same on every rank; all ranks call.

        The gradients of ``parameters``, already averaged over the ranks, are divided by the scale and clipped to the
        norm ``clip``.

        Args:
            finite: () bool each, what else has to be so on this rank.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.scaled and gradients:
            torch._foreach_div_(gradients, self.scale)
        norm = nn.utils.get_total_norm(gradients, foreach=True).to(self.scale.device)  # finite if every number is
        taken = torch.stack([norm.isfinite(), *finite]).all()
        if dist.get_world_size() > 1:
            vote = taken.float()
            dist.all_reduce(vote, op=dist.ReduceOp.MIN)
            taken = vote > 0
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        self._count(taken)
        return taken

    def _count(self, taken: Tensor) -> None:
        left_out = (~taken).long()
        self.skipped += left_out
        self.skipped[1] *= left_out
        self._good_steps += 1
        self._good_steps *= taken
        if self.scaled:
            grows = self._good_steps % self.growth_interval == 0
            self.scale.mul_(torch.where(taken, torch.where(grows, 2.0, 1.0), 0.5))

    @staticmethod
    def step(optimizer: torch.optim.Optimizer | CentreOptimizer, taken: Tensor) -> None:
        """Let the optimiser make its step if it is ``taken``; if not, nothing of it changes."""
        if isinstance(optimizer, CentreOptimizer):
            optimizer.step(taken)
        elif getattr(optimizer, "_step_supports_amp_scaling", False):  # as torch.amp.GradScaler tells fused ones
            optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]  # torch's own way to skip a step
            optimizer.step()
        elif taken:
            optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """The scale, 0 where there is none, and the number of good steps since it has changed."""
        # Copies, for both change before an optimiser's step: a checkpoint is copied behind the loop till then.
        scale = self.scale.clone() if self.scaled else torch.zeros_like(self.scale)
        return {"scale": scale, "good_steps": self._good_steps.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state, but for one of another precision, which says nothing of this one's."""
        if self.scaled and state["scale"] > 0:
            self.scale.copy_(state["scale"])
            self._good_steps.copy_(state["good_steps"])


class SoundBuffers:
    """The buffers of networks, kept finite.

    A forward pass on numbers that are not finite leaves them in running means and variances, whatever becomes of its
    step. ``settle`` puts back what was there when it was last called.
    """

    def __init__(self, *modules: nn.Module) -> None:
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        self._buffers = [buffer for buffer in buffers.values() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def settle(self, spoilt: Tensor) -> None:
        """Keep the numbers as they are now, put back those not finite; with ``spoilt`` (() bool) put all back."""
        for buffer, kept in zip(self._buffers, self._kept):
            buffer.copy_(torch.where(spoilt | ~buffer.isfinite(), kept, buffer))
            kept.copy_(buffer)
