"""What ``auto`` means in a config: values found when a run starts, from its machine and its own planned memory."""

import os
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from evaluate.features.ranks import World
from pipelines.common.cpu import multiplies_bf16
from train.config import Config
from train.distributed import agreed, own_cores
from train.planning.border import fits
from train.planning.decoding import batches_ahead, decoding_threads
from train.planning.step import Setting, chosen_tile, trace_step
from train.planning.work import Precision

AUTOMATIC: tuple[tuple[str, ...], ...] = (
    ("precision",),
    ("head", "tile"),
    ("model", "checkpoint_activations"),
    ("data", "prefetch"),
    ("data", "threads"),
)


def settle(config: Config, setting: Setting, cores: int, any_rank: Callable[[bool], bool] = bool) -> Config:
    """The config with a value for each ``auto``.

    None of them changes what is computed, beyond rounding and fp16's loss scale: a run that goes on elsewhere may
    settle otherwise.

    Args:
        setting: the run's, with the memory that is free on this rank.
        cores: of this rank.
        any_rank: whether something is so on any rank; all of them call.
    """
    if config.precision == "auto":
        lacking = [other for other in ("fp32", "fp16") if any_rank(setting.precision == other)]
        config = config.model_copy(update={"precision": lacking[0] if lacking else "bf16"})
    found: dict[str, dict[str, Any]] = {section: {} for section, *keys in AUTOMATIC if keys}
    if config.head.tile == "auto":
        found["head"]["tile"] = chosen_tile(config, setting)
    if config.data.threads == "auto":
        found["data"]["threads"] = decoding_threads("auto", cores, setting.gpu)
    if config.data.prefetch == "auto":
        found["data"]["prefetch"] = batches_ahead("auto", config.data.batch_size)
    if config.model.checkpoint_activations == "auto":
        needed = config.model.can_compute_again and not fits(trace_step(config, setting, False), setting)
        found["model"]["checkpoint_activations"] = any_rank(needed)
    return config.with_values(**found)


def settled_here(config: Config, world: World, identities: int) -> Config:
    """`settle` for this process of a run, before it has taken any memory; all ranks call."""
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpu = world.device.type == "cuda"
    memory = torch.cuda.mem_get_info(world.device)[0] if gpu else _free_memory() // on_node
    setting = Setting(gpu, memory, world.size, identities, _fastest(world.device))
    return settle(config, setting, own_cores(), lambda needed: any(agreed(lambda: needed)))


def _free_memory() -> int:
    """Bytes of the host that nothing holds."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def _fastest(device: torch.device) -> Precision:
    """The fastest precision that it computes in by itself."""
    if device.type != "cuda":
        return "bf16" if multiplies_bf16() else "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"  # from Volta on: tensor cores


def advice(config: Config, device: torch.device) -> str | None:
    """What is worth telling of a value that is no ``auto``; None where nothing is."""
    if config.precision == "bf16" and (other := _fastest(device)) != "bf16":
        which = "GPU" if device.type == "cuda" else "processor"
        return f"this {which} does not multiply bf16: precision={other} is faster, and precision=auto finds it"
    return None


def settled_values(before: Config, after: Config) -> Iterator[str]:
    """``section.key=value`` for each value that was ``auto``."""
    for path in AUTOMATIC:
        given, found = (reduce(getattr, path, config) for config in (before, after))
        if given == "auto":
            yield f"{'.'.join(path)}={str(found).lower()}"
