"""Images a second of the data pipeline beside the usual ways to feed a face trainer, all on the same cores and images.

The ways run in turns within one process, so that a noisy machine is noisy for all of them. Every row has the median of
the rounds, and medians of the ratios to DALI's decoding alone and to two ``DataLoader``s in the same round.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIImageType

from benchmarks.dataloaders import READY, Batches, dataloaders
from benchmarks.measure import finish, processor_time
from benchmarks.results import Row
from pipelines.loading.loader import Loader
from pipelines.loading.schedule import Schedule
from pipelines.sources import open_source
from pipelines.sources.source import Source

Stream = Iterator[Sized]  # batches without end, as long as they have images

_PAUSE = 0.3  # seconds for the batches that a way goes on to prepare when it is not asked any more
_QUEUED = 4  # batches at least that may lie ready when a round begins
_REMEMBERED = 32  # batches that DALI's decoding alone goes through again and again


def measure_data(
    data: str | Path,
    *,
    batch_size: int = 128,
    cores: int = 2,
    device: torch.device | str = "cpu",
    image_size: int = 112,
    rounds: int = 5,
    seconds: float = 2.0,
) -> list[Row]:
    """A row of each way, DALI's decoding alone first.

    ``of_dataloader`` is beside the usual fast ``DataLoader``, ``of_best_dataloader`` beside the best that one can
    write. ``cpu_us_per_image`` counts the time of all cores, which others that use the machine change less than the
    images a second.
    ``data`` is what ``open_source`` takes. Every way has ``cores`` threads or processes.
    """
    device = torch.device(device)
    source = open_source(data)
    ways: dict[str, Batches] = {}
    # The worker processes come first: they are forked, and DALI's threads would not survive that.
    for name, batches in dataloaders(data, source, batch_size, cores, device, image_size):
        ways[name] = batches
        next(batches)
    decoding_alone = _decoding_alone(source, batch_size, cores, device)
    facemill = _facemill(source, batch_size, cores, device, image_size)
    all_ways = {"DALI's decoding alone": decoding_alone, **facemill, **ways}
    turns = race(all_ways, device, rounds, seconds, queued=max(_QUEUED, READY * cores))
    alone, *_, usual, best = turns.values()
    beside = {"of_decoding_alone": alone, "of_dataloader": usual, "of_best_dataloader": best}
    return [
        {
            "name": name,
            "images_per_second": statistics.median(turn.speed for turn in own),
            **{
                key: statistics.median(ours.speed / theirs.speed for ours, theirs in zip(own, other))
                for key, other in beside.items()
            },
            "cpu_us_per_image": statistics.median(turn.cpu_us for turn in own),
        }
        for name, own in turns.items()
    ]


class Turn(NamedTuple):
    """What one way did in one round."""

    speed: float  # images a second
    cpu_us: float  # microseconds of processors, an image


def race(
    ways: Mapping[str, Stream], device: torch.device, rounds: int, seconds: float, queued: int = _QUEUED
) -> dict[str, list[Turn]]:
    """Each way's turns, one a round. ``queued`` batches, which a way may have prepared meanwhile, are not counted."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            for _ in range(queued):
                next(batches)
            finish(device)
            images, start, began = 0, time.perf_counter(), processor_time()
            while not images or time.perf_counter() - start < seconds:
                images += len(next(batches))
            finish(device)
            speed = images / (time.perf_counter() - start)
            turns[name].append(Turn(speed, (processor_time() - began) / images * 1e6))
            time.sleep(_PAUSE)
    return turns


def _facemill(source: Source, batch_size: int, cores: int, device: torch.device, image_size: int) -> dict[str, Batches]:
    """The loader: decode and flip, with pixels as they are and as training gets them."""
    places: list[dict[str, Any]] = [{}]
    if device.type == "cuda":
        on_gpu = ({"decode_on": "gpu", "hw_decoder_load": load} for load in (0.0, 0.65, 1.0))
        places = [{"decode_on": "cpu"}, *on_gpu]
    ways: dict[str, Batches] = {}
    for place, dtype in itertools.product(places, (torch.uint8, torch.float32)):
        loader = Loader(
            source,
            batch_size=batch_size,
            seed=0,
            image_size=image_size,
            device=device,
            dtype=dtype,
            threads=cores,
            **place,
        )
        setting = "".join(f", {key} {value}" for key, value in place.items())
        ways[f"facemill {str(dtype).removeprefix('torch.')}{setting}"] = (batch.images for batch in loader)
    return ways


def _decoding_alone(source: Source, batch_size: int, cores: int, device: torch.device) -> Batches:
    """Nothing but ``fn.decoders.image`` on bytes that lie ready in memory."""
    schedule = Schedule(len(source), batch_size, seed=0)
    count = min(_REMEMBERED, schedule.steps_per_epoch)
    batches = [[image.copy() for image in source.read(schedule.slice(0, step)[0])[0]] for step in range(count)]
    endless = itertools.cycle(batches)

    @pipeline_def
    def graph() -> DataNode:
        encoded = fn.external_source(source=lambda: next(endless), batch=True, dtype=DALIDataType.UINT8, ndim=1)
        place: dict[str, Any] = {"device": "cpu"}
        if device.type == "cuda":
            place = {"device": "mixed", "jpeg_fancy_upsampling": True}
        return fn.decoders.image(encoded, output_type=DALIImageType.RGB, **place)

    device_id = (device.index or 0) if device.type == "cuda" else None
    pipeline = graph(batch_size=batch_size, num_threads=cores, device_id=device_id, prefetch_queue_depth=3)
    while True:
        yield torch.from_dlpack(pipeline.run()[0].as_tensor())
