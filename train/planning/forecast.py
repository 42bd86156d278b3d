"""How long a step takes, by a roofline: each operator is as slow as its arithmetic or as its memory traffic.

Device, host, decoding and overlapped exchanges go on side by side, so that the slowest of them sets the pace; what is
exchanged in the head stops the device. On a CPU all of them share the cores, and their times add up; its operators may
have been measured. They are those of eager mode: what ``model.compile`` fuses is counted here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from train.config import Config
from train.planning.decoding import decoding_threads
from train.planning.devices import Device, Links
from train.planning.step import Setting, StepTrace
from train.planning.traffic import step_exchanges
from train.planning.work import Work


@dataclass(frozen=True)
class PartTime:
    """One part of a step on one rank.

    Attributes:
        arithmetic, memory: seconds of the operators that are bound by either.
        host: seconds of its launches.
    """

    name: str
    flops: float
    bytes: float
    kernels: float
    arithmetic: float
    memory: float
    host: float

    @property
    def device(self) -> float:
        """Seconds of the device."""
        return self.arithmetic + self.memory


@dataclass(frozen=True)
class Forecast:
    """A step of all ranks.

    Attributes:
        parts: those of the device, in order.
        exposed, hidden: seconds of what the ranks exchange, which the device waits for, and which it does not.
        host: seconds of all launches.
        decoding: seconds of a rank's threads.
        step: seconds.
        images: of a step.
        binds: what the step waits for most: ``arithmetic``, ``memory``, ``links``, ``host`` or ``decoding``.
    """

    parts: tuple[PartTime, ...]
    exposed: float
    hidden: float
    host: float
    decoding: float
    step: float
    images: int
    binds: str

    @property
    def images_per_second(self) -> float:
        """Of all ranks."""
        return self.images / self.step


def forecast(config: Config, setting: Setting, trace: StepTrace, device: Device, links: Links) -> Forecast:
    """The forecast of a step that was traced."""
    batches = config.optim.accumulate
    names = dict.fromkeys(work.name for work in trace.work)
    parts = tuple(
        part_time(name, (work for work in trace.work if work.name == name), device, 1 if "update" in name else batches)
        for name in names
    )
    network = trace.network
    exchanges = step_exchanges(config, setting.ranks, parameters=network.parameters, batch_norms=network.batch_norms)
    times = [(each.seconds(setting.ranks, links), each.overlapped) for each in exchanges]
    hidden = sum(seconds for seconds, overlapped in times if overlapped)
    backward = sum(part.device for part in parts if part.name == "backbone backward")
    exposed = sum(seconds for seconds, overlapped in times if not overlapped) + max(0.0, hidden - backward)
    arithmetic, memory = sum(part.arithmetic for part in parts), sum(part.memory for part in parts)
    host = sum(part.host for part in parts)
    images = config.data.batch_size * batches
    threads = min(device.cores, decoding_threads(config.data.threads, device.cores, setting.gpu))
    decoding = images / (device.decode * threads)
    shares = {"arithmetic": arithmetic, "memory": memory, "links": exposed}
    beside = {"host": host, "decoding": decoding}
    if not setting.gpu:  # the cores do one after the other
        shares, beside = shares | beside, {}
    computing = sum(shares.values())
    step = max([computing, *beside.values()])
    slowest = beside if step > computing else shares
    binds = max(slowest, key=slowest.__getitem__)
    return Forecast(parts, exposed, hidden, host, decoding, step, images * setting.ranks, binds)


def part_time(name: str, work: Iterable[Work], device: Device, times: int = 1) -> PartTime:
    """The time of some operators, all of them done so many ``times``."""
    flops = moved = arithmetic = memory = 0.0
    kernels = 0
    for each in work:
        rate = device.flops.get(each.precision, device.flops["fp32"])
        share = device.conv_share if each.kind == "convolution" else device.matmul_share
        computing = each.flops / (rate * share)
        moving = each.bytes / (device.bandwidth * device.memory_share)
        flops, moved, kernels = flops + each.flops, moved + each.bytes, kernels + each.kernels
        if each.seconds is not None:
            computing, moving = (each.seconds, 0.0) if each.flops else (0.0, each.seconds)
        if computing > moving:
            arithmetic += computing
        else:
            memory += moving
    sums = flops, moved, kernels, arithmetic, memory, kernels * device.launch
    return PartTime(name, *(times * value for value in sums))
