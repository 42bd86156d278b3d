"""The plan of a run: memory, what fits, the time of a step and of the run, disk, and what to think about."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train.config import Config
from train.planning.automatic import settle
from train.planning.border import fits, largest_batch, most_identities
from train.planning.data_sets import DataSize
from train.planning.devices import Device, Links
from train.planning.forecast import Forecast, forecast
from train.planning.step import Memory, Setting, StepTrace, trace_step
from train.planning.timing import OperatorTimer

_DAY = 86400.0  # seconds
_MUCH = 0.1  # of a step


@dataclass(frozen=True)
class Cluster:
    """What a run is planned for."""

    device: Device
    links: Links
    ranks: int


@dataclass(frozen=True)
class Plan:
    """What a run needs of each rank, and how long it takes.

    Attributes:
        config: settled for the cluster.
        memory: of a step of ``config``.
        keeping, recomputing: the same with activations kept and computed again; None where the backbone has no choice.
        largest_batch: images a rank that fit, as ``config`` is; None where that was not asked for.
        most_identities: that fit, over all ranks.
        steps, days: of the schedule; None where nobody knows the number of images.
        checkpoint: bytes of one checkpoint.
        warnings: a sentence each.
    """

    config: Config
    cluster: Cluster
    data: DataSize
    memory: Memory
    fits: bool
    keeping: int | None
    recomputing: int | None
    largest_batch: int | None
    most_identities: int | None
    forecast: Forecast
    steps: int | None
    days: float | None
    checkpoint: int
    warnings: tuple[str, ...]

    @property
    def disk(self) -> int:
        """Bytes of ``checkpoint.keep`` checkpoints, and of one more while it is written."""
        return (self.config.checkpoint.keep + 1) * self.checkpoint

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, seconds, FLOPs."""
        tree = asdict(replace(self, config=None, cluster=None))  # type: ignore[arg-type]  # told in other words
        del tree["config"], tree["cluster"]
        config, cluster = self.config, self.cluster
        return {
            "model": config.model.name,
            "device": cluster.device.name,
            "ranks": cluster.ranks,
            "batch_size": config.data.batch_size,
            "checkpoint_activations": config.model.checkpoint_activations,
            "tile": config.head.tile,
            **tree,
            "memory": {"moment": self.memory.moment, "total": self.memory.total, "parts": dict(self.memory.parts)},
            "images_per_second": self.forecast.images_per_second,
            "disk": self.disk,
        }


def make_plan(
    config: Config,
    cluster: Cluster,
    data: DataSize,
    *,
    made_for: int | None = None,
    borders: bool = True,
    timed: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        made_for: the global batch for which the config's learning rate is; None where nobody knows.
        timed: whether to time the step's operators on this CPU instead of taking them from a roofline.
        borders: whether to look for the largest batch and the most identities, which takes some traces more.
    """
    device = cluster.device
    setting = Setting(device.name != "cpu", device.memory, cluster.ranks, data.identities, device.precision)
    given, config = config, settle(config, setting, device.cores)
    again = config.model.checkpoint_activations is True
    trace = trace_step(config, setting, timer=OperatorTimer() if timed else None)
    keeping = recomputing = None
    if config.model.can_compute_again:
        other = trace_step(config, setting, not again).memory.total
        keeping, recomputing = (other, trace.memory.total) if again else (trace.memory.total, other)
    expected = forecast(config, setting, trace, device, cluster.links)
    tiling = config.model_copy(update={"head": given.head})  # whose tiles are as large as they will be
    steps = None if data.images is None else round(config.schedule.epochs * (data.images // expected.images))
    plan = Plan(
        config=config,
        cluster=cluster,
        data=data,
        memory=trace.memory,
        fits=fits(trace, setting),
        keeping=keeping,
        recomputing=recomputing,
        largest_batch=largest_batch(tiling, setting) if borders else None,
        most_identities=most_identities(tiling, setting, trace) if borders else None,
        forecast=expected,
        steps=steps,
        days=None if steps is None else steps * expected.step / _DAY,
        checkpoint=_checkpoint(trace, cluster.ranks),
        warnings=(),
    )
    return replace(plan, warnings=tuple(_warnings(plan, made_for)))


def source_batch(path: str | Path) -> int | None:
    """The global batch of a config's source, where its comment says so: ``Schedule: …, 128 x 8 images``."""
    found = re.search(r"^#.*?\b(\d+) x (\d+) images", Path(path).read_text(encoding="utf-8-sig"), re.MULTILINE)
    return int(found[1]) * int(found[2]) if found else None


def _checkpoint(trace: StepTrace, ranks: int) -> int:
    """Bytes of weights, their average, centres, and what optimisers remember: of a replica, and of all shards."""
    network, head = trace.network.phases["build"].left, trace.head["build"].left
    return _of(network, "weights", "averaged weights", "optimiser") + ranks * _of(
        head, "centres", "optimiser of the centres"
    )


def _of(parts: Mapping[str, int], *names: str) -> int:
    return sum(parts.get(name, 0) for name in names)


def _warnings(plan: Plan, made_for: int | None) -> list[str]:
    config, expected, images = plan.config, plan.forecast, plan.data.images
    device, between = plan.cluster.device, plan.cluster.links.between
    found = []
    if images is not None and images < expected.images:
        found.append(f"no run: a global batch of {expected.images} does not fit into a data set of {images} images")
    if not plan.fits:
        way = " smaller data.batch_size, more ranks or head.sample_rate" + (
            ""
            if plan.recomputing is None or config.model.checkpoint_activations
            else ", model.checkpoint_activations=auto"
        )
        found.append(f"does not fit into the memory of {device.name}: take{way}")
    if config.precision == "bf16" and device.precision == "fp16":
        found.append(f"{device.name} has no unit for bf16: take precision=fp16 (the head stays in bf16)")
    if expected.binds == "decoding":
        found.append("decoding is slower than training: raise data.threads where there are cores")
    if expected.binds == "host":
        way = "" if config.model.compile else " or model.compile=true"
        found.append(f"the host launches more slowly than the device works: take larger batches{way}")
    waiting = expected.exposed / expected.step
    if waiting > _MUCH:
        found.append(
            f"{waiting:.0%} of a step waits for the links between ranks ({between.name} between nodes): "
            "take faster ones, larger batches, or optim.compress=bf16"
        )
    if made_for is not None and made_for != expected.images:
        found.append(_other_batch(config, expected.images, made_for))
    return found


def _other_batch(config: Config, images: int, made_for: int) -> str:
    """What to say where a global batch is not that of the config's source."""
    batches, rest = divmod(made_for, images)
    keep = f", or keep the batch by optim.accumulate={batches}" if batches > 1 and not rest else ""
    # Goyal et al. (2017) for SGD; Malladi et al. (2022) for Adam.
    rule, power = ("linear", 1.0) if config.optim.name == "sgd" else ("square-root", 0.5)
    return (
        f"the global batch is {images}, that of the config's source {made_for}: optim.lr={config.optim.lr:g} is for "
        f"the latter, and the {rule} rule makes it {config.optim.lr * (images / made_for) ** power:.2g}{keep}"
    )
