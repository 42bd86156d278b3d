"""Ways to feed a face trainer by torch's ``DataLoader``: arcface_torch's, the usual fast one and the best."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, get_worker_info

from benchmarks.mxnet_compat import import_mxnet
from pipelines.common.errors import UserError
from pipelines.sources.source import Source

Batches = Iterator[Tensor]
Fill = Callable[[np.ndarray, np.ndarray, bool], None]  # an encoded image → pixels (h, w, 3), mirrored or not

READY = 3  # batches that a worker prepares ahead


def dataloaders(
    data: str | Path, source: Source, batch_size: int, workers: int, device: torch.device, image_size: int
) -> Iterator[tuple[str, Batches]]:
    """The ways' names and endless images (b, 3, h, w) on ``device``; the first ``next`` forks ``workers`` processes.

    arcface_torch's takes images as large as they are, as float32; the others give uint8 of ``image_size``: one that
    leaves it to torch to make batches of images, and one whose workers decode into memory that they share.
    """
    options: dict[str, Any] = dict(
        num_workers=workers,
        prefetch_factor=READY,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    name, images = _arcface_torch(data, source)
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True, **options)
    yield name, (batch.to(device, non_blocking=True) for batch in _endless(loader))

    decoder, fill = _fastest_decoder()
    loader = DataLoader(_Pixels(source, fill, image_size), batch_size, shuffle=True, drop_last=True, **options)
    usual = (batch.permute(0, 3, 1, 2).to(device, non_blocking=True) for batch in _endless(loader))
    yield f"DataLoader ({decoder}, uint8)", usual

    whole = _WholeBatches(source, fill, (batch_size, image_size, image_size, 3), workers)
    order = BatchSampler(RandomSampler(whole), batch_size, drop_last=True)
    loader = DataLoader(whole, batch_size=None, sampler=order, **options)
    best = (whole.batch(*place).to(device, non_blocking=True) for place, _ in _endless(loader))
    yield f"best DataLoader ({decoder}, uint8, shared memory)", best


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


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


class _WholeBatches(Dataset):
    """Batches that a worker decodes straight into memory which it shares with the trainer, so that none is copied.

    Its place in that memory is all that a batch sends; the place is used again when ``READY + 1`` others are out.
    """

    def __init__(self, source: Source, fill: Fill, shape: tuple[int, ...], workers: int) -> None:
        self._source, self._fill = source, fill
        self._memory = torch.empty((workers, READY + 2, *shape), dtype=torch.uint8).share_memory_()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, indices: list[int]) -> tuple[tuple[int, int], np.ndarray]:
        worker = get_worker_info()
        place = worker.id if worker else 0, self._turn % self._memory.shape[1]
        self._turn += 1
        encoded, labels = self._source.read(np.array(indices))
        mirrored = torch.rand(len(indices)) < 0.5
        for image, pixels, flip in zip(encoded, self._memory[place].numpy(), mirrored.tolist()):
            self._fill(image, pixels, flip)
        return place, labels

    def batch(self, worker: int, place: int) -> Tensor:
        """uint8 (b, 3, h, w), channels-last."""
        return self._memory[worker, place].permute(0, 3, 1, 2)


class _Pixels(Dataset):
    """Images uint8 (side, side, 3), decoded one by one; a batch is read at once, which ``DataLoader`` asks for so."""

    def __init__(self, source: Source, fill: Fill, side: int) -> None:
        self._source, self._fill, self._side = source, fill, side

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        encoded, _ = self._source.read(np.array(indices))
        return [self._decoded(image) for image in encoded]

    def _decoded(self, encoded: np.ndarray) -> Tensor:
        pixels = np.empty((self._side, self._side, 3), np.uint8)
        self._fill(encoded, pixels, bool(torch.rand(1) < 0.5))
        return torch.from_numpy(pixels)


def _fastest_decoder() -> tuple[str, Fill]:
    """libjpeg-turbo by simplejpeg, at a half or quarter of the size where that does, and OpenCV; PIL without them."""
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return "PIL", _fill_by_pil
    cv2.setNumThreads(0)

    def fill(encoded: np.ndarray, pixels: np.ndarray, flip: bool) -> None:
        side = len(pixels)
        image = simplejpeg.decode_jpeg(encoded, "RGB", min_height=side, min_width=side, min_factor=2)
        if image.shape != pixels.shape:
            image = cv2.resize(image, (side, side))
        if flip:
            cv2.flip(image, 1, dst=pixels)
        else:
            pixels[:] = image

    return "simplejpeg", fill


def _fill_by_pil(encoded: np.ndarray, pixels: np.ndarray, flip: bool) -> None:
    side = len(pixels)
    image = np.asarray(Image.open(io.BytesIO(encoded.data)).convert("RGB").resize((side, side)))
    pixels[:] = image[:, ::-1] if flip else image
