"""Images a second of the data pipeline beside the usual ways to feed a face trainer, all on the same cores and images.

The ways run in turns within one process, so that a noisy machine is noisy for all of them. Every row has the median of
the rounds and the median of the ratios to DALI's decoding alone in the same round.
"""

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIImageType
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import finish
from benchmarks.results import Row
from pipelines.common.errors import UserError
from pipelines.common.mxnet_compat import import_mxnet
from pipelines.loading.loader import Loader
from pipelines.loading.schedule import Schedule
from pipelines.sources import open_source
from pipelines.sources.source import Source

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

    ``data`` is what ``open_source`` takes, with images of ``image_size``. Every way has ``cores`` threads or processes.
    """
    device = torch.device(device)
    source = open_source(data)
    ways: dict[str, Batches] = {}
    # The worker processes come first: they are forked, and DALI's threads would not survive that.
    for (name, dataset), collate in ((_arcface_torch(data, source), None), (_leanest_dataset(source), _stack)):
        ways[name] = _dataloader(dataset, collate, batch_size, cores, device)
        next(ways[name])
    decoding_alone = _decoding_alone(source, batch_size, cores, device)
    facemill = _facemill(source, batch_size, cores, device, image_size)
    speeds = _race({"DALI's decoding alone": decoding_alone, **facemill, **ways}, device, rounds, seconds)
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
            finish(device)
            images, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                images += len(next(batches))
            finish(device)
            speeds[name].append(images / (time.perf_counter() - start))
            time.sleep(_PAUSE)
    return speeds


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


def _dataloader(
    dataset: Dataset, collate: Callable | None, batch_size: int, workers: int, device: torch.device
) -> Batches:
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    while True:
        for images in loader:
            yield images.to(device, non_blocking=True)


class _Images(Dataset):
    """A data set whose images ``load`` gives by index."""

    def __init__(self, load: Callable[[int], Any], count: int) -> None:
        self._load = load
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._load(index)


def _arcface_torch(data: str | Path, source: Source) -> tuple[str, Dataset]:
    """arcface_torch's ``MXFaceDataset``: mxnet's reader and decoder, then torchvision's transforms on PIL images.

    The transforms are spelled out: ``ToPILImage``, ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize(.5, .5)``. PIL
    decodes where mxnet is missing or the data is no RecordIO file.
    """
    try:
        decoder, (decode, count) = "mxnet", _mxnet_reader(Path(data))
    except ValueError:
        decoder, decode, count = "PIL", partial(_pil_decode, source), len(source)

    def load(index: int) -> Tensor:
        image = Image.fromarray(decode(index))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return tensor.sub_(torch.full((3, 1, 1), 0.5)).div_(torch.full((3, 1, 1), 0.5))

    return f"arcface_torch's way ({decoder})", _Images(load, count)


def _mxnet_reader(data: Path) -> tuple[Callable[[int], np.ndarray], int]:
    """Images uint8 (h, w, 3) by number, and their count, by mxnet; ``ValueError`` where that does not go."""
    mxnet = import_mxnet()
    rec = data / "train.rec" if data.is_dir() else data
    if not rec.with_suffix(".idx").is_file():
        raise UserError(f"{data} is no RecordIO file with an index")
    records = mxnet.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    header, _ = mxnet.recordio.unpack(records.read_idx(records.keys[0]))
    keys = list(range(1, int(header.label[0]))) if header.flag else records.keys

    def decode(index: int) -> np.ndarray:
        _, encoded = mxnet.recordio.unpack(records.read_idx(keys[index]))
        return mxnet.image.imdecode(encoded).asnumpy()

    return decode, len(keys)


def _pil_decode(source: Source, index: int) -> np.ndarray:
    (encoded,), _ = source.read(np.array([index]))
    return np.asarray(Image.open(io.BytesIO(encoded.data)).convert("RGB"))


def _leanest_dataset(source: Source) -> tuple[str, Dataset]:
    """The least a ``DataLoader`` can do: decode, mirror, and leave the pixels in 8 bits. PIL decodes without OpenCV."""
    decode: Callable[[int], np.ndarray]
    try:
        import cv2
    except ImportError:
        decoder, decode = "PIL", partial(_pil_decode, source)
    else:
        decoder = "cv2"
        cv2.setNumThreads(0)

        def decode(index: int) -> np.ndarray:
            (encoded,), _ = source.read(np.array([index]))
            return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def load(index: int) -> np.ndarray:
        image = decode(index)
        return image[:, ::-1] if torch.rand(1) < 0.5 else image

    return f"lean DataLoader ({decoder}, uint8)", _Images(load, len(source))


def _stack(images: list[np.ndarray]) -> Tensor:
    """uint8 (b, 3, h, w), channels-last."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
