"""Images a second of the data pipeline beside the usual ways to feed a face trainer, all on the same cores and images.

The ways run in turns within one process, so that a noisy machine is noisy for all of them. Every row has the median of
the rounds and the median of the ratios to DALI's decoding alone in the same round.
"""

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import Row
from pipelines.loader import Loader
from pipelines.mxnet_compat import import_mxnet
from pipelines.schedule import Schedule
from pipelines.sources import Source, open_source

_PAUSE = 0.3  # seconds for the batches that a way goes on to prepare when it is not asked any more
_QUEUED = 4  # batches that may lie ready when a round begins; they are not counted
_REMEMBERED = 32  # batches that DALI's decoding alone goes through again and again

Batches = Iterator[Tensor]


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
    """Rows {name, images_per_second, of_decoding_alone}, the first being DALI's decoding alone.

    ``data`` is what ``open_source`` takes, its images of ``image_size``. Every way has ``cores`` threads or worker processes.
    """
    device = torch.device(device)
    source = open_source(data)
    ways: dict[str, Batches] = {}
    # The worker processes come first: they are forked, and DALI's threads would not survive that.
    name, dataset = _arcface_torch(data, source)
    ways[name] = _dataloader(dataset, batch_size, cores, device)
    name, dataset = _best_dataset(source)
    ways[name] = _dataloader(dataset, batch_size, cores, device)
    for batches in ways.values():
        next(batches)
    ways = {
        **_decoding_alone(source, batch_size, cores, device),
        **_facemill(source, batch_size, cores, device, image_size),
        **ways,
    }
    speeds = _race(ways, device, rounds, seconds)
    alone = next(iter(speeds.values()))
    return [
        {
            "name": name,
            "images_per_second": statistics.median(speed),
            "of_decoding_alone": statistics.median(ours / theirs for ours, theirs in zip(speed, alone)),
        }
        for name, speed in speeds.items()
    ]


def _race(ways: dict[str, Batches], device: torch.device, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each way in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            for _ in range(_QUEUED):
                next(batches)
            _finish(device)
            images, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                images += len(next(batches))
            _finish(device)
            speeds[name].append(images / (time.perf_counter() - start))
            time.sleep(_PAUSE)
    return speeds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _facemill(
    source: Source, batch_size: int, cores: int, device: torch.device, image_size: int
) -> dict[str, Batches]:
    """The loader: decode and flip, with pixels as they are and as training gets them."""
    places = [{}] if device.type == "cpu" else [{"decode_on": "cpu"}, *({"hw_decoder_load": load} for load in (0, 0.65, 1))]
    ways = {}
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


def _decoding_alone(source: Source, batch_size: int, cores: int, device: torch.device) -> dict[str, Batches]:
    """Nothing but ``fn.decoders.image`` on bytes that lie ready in memory."""
    schedule = Schedule(len(source), batch_size, seed=0)
    count = min(_REMEMBERED, schedule.steps_per_epoch)
    batches = [[image.copy() for image in source.read(schedule.slice(0, step)[0])[0]] for step in range(count)]
    endless = itertools.cycle(batches)

    @pipeline_def(
        batch_size=batch_size,
        num_threads=cores,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=3,
    )
    def graph() -> DataNode:
        encoded = fn.external_source(source=lambda: next(endless), batch=True, dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device="mixed" if device.type == "cuda" else "cpu", output_type=types.RGB)

    def run() -> Batches:
        pipeline = graph()
        while True:
            yield torch.from_dlpack(pipeline.run()[0].as_tensor())

    return {"DALI decoding alone": run()}


def _dataloader(dataset: Dataset, batch_size: int, cores: int, device: torch.device) -> Batches:
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=cores,
        drop_last=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    while True:
        for images in loader:
            yield images.to(device, non_blocking=True)


class _Images(Dataset):
    """A sample through ``load``, index → image."""

    def __init__(self, count: int, load: Callable[[int], Tensor]) -> None:
        self._count = count
        self._load = load

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return self._load(index)


def _arcface_torch(data: str | Path, source: Source) -> tuple[str, Dataset]:
    """arcface_torch's ``MXFaceDataset``: mxnet's reader and decoder, then torchvision's transforms on PIL images.

    Without mxnet, or where the data is no RecordIO file, PIL decodes. The transforms are those of torchvision, spelled
    out: ``ToPILImage``, ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize(.5, .5)``.
    """
    from PIL import Image

    decode, decoder = _mxnet_reader(data, source), "mxnet"
    if decode is None:
        decode, decoder = lambda index: np.asarray(Image.open(_file(source, index)).convert("RGB")), "PIL"

    def load(index: int) -> Tensor:
        image = Image.fromarray(decode(index))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(0.5).div_(0.5)

    return f"arcface_torch ({decoder})", _Images(len(source), load)
