"""What a computation on tensors without data would take: memory by what it is for, and work operator by operator.

Tensors are fake ones or such of the meta device: operators give shapes and types, and nothing is computed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from train.planning.timing import OperatorTimer
from train.planning.work import Kind, Precision, Work

aten = torch.ops.aten
_PRECISIONS: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_ALLOCATIONS = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided}
# They read as many numbers of their first argument as they give, or write as many into it as they are given.
_READS_SOME = {aten.index, aten.index_select, aten.gather, aten.embedding}
_WRITES_SOME = {aten.index_put_, aten.scatter_, aten.index_fill_, aten.index_add_}
# They go over what they are given twice: for the statistics, and with them.
_READS_TWICE = {aten.native_batch_norm, aten.native_batch_norm_backward}
_TENSORS_A_LAUNCH = 64  # of an operator on lists (torch's multi_tensor_apply)


@dataclass(frozen=True)
class Phase:
    """A stretch of a computation.

    Attributes:
        peak: bytes by what they are for, at the moment when they are most in all.
        left: those that are alive at its end.
        work: its operators, in order.
    """

    peak: Mapping[str, int]
    left: Mapping[str, int]
    work: tuple[Work, ...]


class Recorder(TorchDispatchMode):
    """A mode that notes every storage that lives, and every operator.

    Args:
        timer: what to ask for the seconds of each operator.

    Attributes:
        phases: those that are over, by their names.
        use: what storages are for that are made from now on.
    """

    def __init__(self, timer: OperatorTimer | None = None) -> None:
        super().__init__()
        self._timer = timer
        self.phases: dict[str, Phase] = {}
        self.use = ""
        self._storages: dict[int, tuple[ReferenceType, str, int]] = {}  # with their use and bytes, by their address
        self._live: Counter[str] = Counter()
        self._peak: Mapping[str, int] = {}
        self._most = 0
        self._work: list[Work] = []
        self._name = ""

    @contextmanager
    def phase(self, name: str, use: str, part: str = "") -> Iterator[None]:
        """A stretch whose new storages are for ``use``; its work goes by the name of the ``part`` it belongs to."""
        self.use, self._name, self._work = use, part or name, []
        self._peak, self._most = {}, -1
        self._note_peak()
        yield
        self.phases[name] = Phase(self._peak, dict(+self._live), tuple(self._work))

    def relabel(self, tensor: Tensor, use: str) -> None:
        """Count a tensor's storage as being for another ``use``."""
        key = tensor.untyped_storage()._cdata
        reference, old, size = self._storages[key]
        self._storages[key] = reference, use, size
        self._live[old] -= size
        self._live[use] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result in results:
            self._watch(result)
        self._note_work(func, args, kwargs or {}, out, results)
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages[key] = ref(storage, self._forgetting(key)), self.use, size
        self._live[self.use] += size
        self._note_peak()

    def _forgetting(self, key: int) -> Callable[[ReferenceType], None]:
        def forget(_: ReferenceType) -> None:
            _, use, size = self._storages.pop(key)
            self._live[use] -= size

        return forget

    def _note_peak(self) -> None:
        if (total := self._live.total()) > self._most:
            self._peak, self._most = dict(+self._live), total

    def _note_work(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any, results: list[Tensor]) -> None:
        packet = getattr(func, "overloadpacket", None)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        schema = getattr(func, "_schema", None)
        if packet in _ALLOCATIONS or schema is None or not (given or results):
            return
        written = [
            leaf
            for argument, value in zip(schema.arguments, args)
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(value)
            if isinstance(leaf, Tensor)
        ]
        read = {t.untyped_storage()._cdata for t in given}
        made = [t for t in results if t.untyped_storage()._cdata not in read]
        if not written and not made:  # a view
            return
        flops = _flops(packet, args, kwargs, out)
        precision: Precision = next((_PRECISIONS[t.dtype] for t in given if t.dtype in _PRECISIONS), "fp32")
        kind: Kind = "other" if not flops else "convolution" if "convolution" in str(packet) else "product"
        lists = max((len(value) for value in args if isinstance(value, list | tuple)), default=0)
        kernels = -(-lists // _TENSORS_A_LAUNCH) if "foreach" in str(packet) or "fused_" in str(packet) else 1
        if packet is aten.convolution_backward:
            kernels = len(made)
        seconds = self._timer(func, args, kwargs) if self._timer else None
        moved = _moved(packet, given, written, made)
        self._work.append(Work(self._name, kind, precision, flops, moved, kernels, seconds))


def place(module: nn.Module, device: str) -> None:
    """Give a module of the meta device tensors on another one, in the memory formats of the training loop."""
    placed: dict[int, Tensor] = {}
    for part in module.modules():
        tables: list[dict[str, Any]] = [part._parameters, part._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    form = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                    fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=form)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    placed[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                table[name] = placed[id(tensor)]


def _flops(packet: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    # As the CPU's attention is what fake tensors on a CPU run into, and torch's table leaves it out.
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    if packet is aten.convolution:
        return _convolution_flops(args[1], out)
    if packet is aten.convolution_backward:
        return _convolution_flops(args[2], args[0]) * sum(args[-1][:2])
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def _convolution_flops(weight: Tensor, out: Tensor) -> int:
    """Of a convolution in groups, or of its gradient by images or weights; torch's table takes more for the latter."""
    return 2 * weight.numel() * out.numel() // out.shape[1]


def _moved(packet: Any, given: list[Tensor], written: list[Tensor], made: list[Tensor]) -> int:
    """Bytes read and written."""
    sizes = [_size(t) for t in given]
    if packet in _READS_SOME:
        return sum(sizes[1:]) + 2 * sum(map(_size, made))
    if packet in _WRITES_SOME:
        return sum(sizes[1:]) + max(sizes[1:], default=0)
    return (2 if packet in _READS_TWICE else 1) * sum(sizes) + sum(map(_size, [*written, *made]))


def _size(tensor: Tensor) -> int:
    """Bytes of the numbers of a tensor, each counted once where it is repeated."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
