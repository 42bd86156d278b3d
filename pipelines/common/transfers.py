"""Copies between host and device for which the other work of neither waits."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor on its way to the host: the copy begins here, ``result`` waits for it and for nothing behind it.

    What the device is given to do between the two runs while the host works on the result. On a CPU it is the tensor
    itself.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy, self._arrived = tensor, None
        if tensor.is_cuda:
            self._copy = torch.empty_like(tensor, device="cpu", pin_memory=True)  # the device writes to no other memory
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)  # the waiting host leaves its core to others
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def result(self) -> Tensor:
        """The tensor on the host."""
        if self._arrived:
            self._arrived.synchronize()
        return self._copy


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``, behind the work that the device has; the host goes on at once."""
    return tensor.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
