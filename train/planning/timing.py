"""How long operators take on this processor: each alone, on numbers of its shapes.

A CPU is no roofline: what a convolution reaches of its peak differs by a factor of ten between shapes.
"""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

_TIMES = 3


class OperatorTimer:
    """Seconds of operators, as a `Recorder` meets them. Those that are alike are run once."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def __call__(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> float:
        """Of ``func(*args, **kwargs)``, whose tensors may be fake ones on the CPU."""
        call = args, kwargs
        key = f"{func} {tree_map_only(Tensor, lambda t: (t.dtype, t.shape, t.stride()), call)}"
        if key not in self._seconds:
            with _disable_current_modes(), torch.no_grad():
                self._seconds[key] = median(_once(func, call) for _ in range(_TIMES))
        return self._seconds[key]


def _once(func: Any, call: tuple) -> float:
    args, kwargs = tree_map_only(Tensor, _real, call)
    began = time.perf_counter()
    func(*args, **kwargs)
    return time.perf_counter() - began


def _real(tensor: Tensor) -> Tensor:
    """Numbers between 1/2 and 1, zeros for indices, in the memory format of ``tensor``."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    numbers = torch.zeros(last + 1 if tensor.numel() else 0, dtype=tensor.dtype)
    if tensor.is_floating_point():
        numbers.uniform_(0.5, 1)
    return numbers.as_strided(tensor.shape, tensor.stride())
