"""What a run learns, as tensors: the parts of a checkpoint, and weights by themselves. All of it has to be finite."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from models.lora import merged
from pipelines.common.errors import UserError
from pipelines.common.files import replacing

# A part of a run: what has ``state_dict`` and ``load_state_dict``, or tensors that are read into in place.
Part = Stateful | Tensor | dict[str, Tensor]


class OptimizerState:
    """An optimiser as a part of a checkpoint, its state under the names of the module's parameters.

    Its rates and the like are not in it: the config has them.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer

    def state_dict(self) -> dict[str, Any]:
        """The state, made at zero where there was no step yet."""
        return {"state": get_optimizer_state_dict(self._module, self._optimizer)["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        groups = get_optimizer_state_dict(self._module, self._optimizer)["param_groups"]
        set_optimizer_state_dict(self._module, self._optimizer, {**state, "param_groups": groups})


def snapshot(part: Part) -> dict[str, Any] | Tensor:
    """The tensors of a part; those that may change before an optimiser's next step are copied."""
    if isinstance(part, Tensor):
        return part.clone()
    if isinstance(part, dict):
        return part
    state = part.state_dict()
    if isinstance(part, nn.Module):
        buffers = {name for name, _ in part.named_buffers()}
        state = {name: value.clone() if name in buffers else value for name, value in state.items()}
    return state


def check_finite(state: dict[str, Any], path: str = "") -> None:
    """Raises ``UserError`` for a tensor with a number that is not finite."""
    for name, value in state.items():
        if isinstance(value, dict):
            check_finite(value, f"{path}{name}.")
        elif value.is_floating_point():
            local = value.to_local() if isinstance(value, DTensor) else value
            if not local.sum().isfinite():  # one pass, where to look at every number takes fifty times as long
                raise UserError(f"{path}{name} is not finite: no checkpoint is written of it")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict of CPU tensors, whole or not at all, LoRA's updates merged.

    Raises ``UserError`` for numbers that are not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in merged(model.state_dict()).items()}
    check_finite(tensors)
    content = io.BytesIO()
    torch.save(tensors, content)  # which would tell a full disk as an error of its own
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
