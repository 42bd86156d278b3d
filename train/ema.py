"""Averaged weights: an exponential moving average of the backbone over the steps, which is verified and saved."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a backbone's weights (Polyak and Juditsky, 1992).

    From the weights *w* that step *t* = 0, 1, … leaves, the average *a* becomes ::

        a + (1 − d)·(w − a),        d = min(decay, (1 + t) / (10 + t))

    The decay grows as in TensorFlow's ``ExponentialMovingAverage`` (``num_updates``), so that initial weights are soon
    forgotten: ten steps leave them a share of 1e-5. It depends on the step alone.

    Running means and variances are averaged like weights. The network's own are those of its last weights, which are
    far from the average; the average of what all weights gave is right to first order in their distances.

    It does what `torch.optim.swa_utils.AveragedModel` does, but on the device alone: whether a step is taken, the host
    does not know.

    Attributes:
        network: the averaged backbone, in evaluation mode. It shares the counters of ``backbone``.
    """

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        self.decay = decay
        counters = {id(buffer): buffer for buffer in backbone.buffers() if not buffer.is_floating_point()}
        self.network = deepcopy(backbone, counters).eval().requires_grad_(False)
        self._weights, self._averages = averaged(backbone), averaged(self.network)

    @torch.no_grad()
    def update(self, step: int, taken: Tensor) -> None:
        """Take in the weights that ``step`` leaves; unless it was ``taken`` (() bool on the device) none of them moves.

        Running statistics that are not finite make their averages so: see `train.gate.SoundBuffers`.
        """
        approach(self._averages, self._weights, taken * (1 - min(self.decay, (1 + step) / (10 + step))))


def averaged(network: nn.Module) -> list[Tensor]:
    """The tensors of a network that have an average, in a fixed order."""
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]


def approach(averages: list[Tensor], weights: list[Tensor], share: Tensor) -> None:
    """Move averages by ``share``, (), of the way to the weights."""
    way = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(way, share)
    torch._foreach_add_(averages, way)
