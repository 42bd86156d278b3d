"""Batches for training, endless and from any step, and for evaluation, once and in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.common.errors import UserError
from pipelines.loading.admission import STAND_IN
from pipelines.loading.augment import find_augmentation
from pipelines.loading.batch import Batch, EncodedBatch
from pipelines.loading.decoder import Decoder
from pipelines.loading.landmarks import Landmarks
from pipelines.loading.quarantine import Quarantine
from pipelines.loading.rates import Share
from pipelines.loading.read_ahead import ReadAhead
from pipelines.loading.samples import Samples, uniforms_before
from pipelines.loading.schedule import Schedule
from pipelines.loading.waiting import Waiting
from pipelines.sources.source import Source

_DEPTH = 3  # batches that ``read_once`` decodes at a time


class Loader:
    """An endless iterator over the batches of one rank, a pure function of (seed, step).

    A thread reads, decodes and copies them ahead of their use. ``step`` counts batches, that is, of ``accumulate`` to a
    global step, and is the one that comes next; ``seek`` sets it. ``steps_per_epoch`` are global steps.

    A sample that cannot be read or decoded, or whose label is none of the source's classes, is bad: it is logged,
    written to the file ``quarantine`` (a JSON object a line), which all ranks and restarts of a run share, and replaced
    by the schedule's substitute. ``ValueError`` ends the iteration when more than ``max_bad_fraction`` of all samples
    are bad or missing.

    Args:
        batch_size: of this rank; a global batch has ``batch_size * world_size * accumulate`` samples.
        accumulate: batches of this rank in a global batch. Batch j of rank r takes the (j * world_size + r)-th share.
        seed: of the order, the mirror images, the augmentation and ``Batch.uniforms``.
        augment, shuffle: names in ``AUGMENTATIONS`` and ``SHUFFLES``.
        shares: of the sets that the source is made of, where not every image is to come once an epoch; see ``Places``.
        image_size: side of the images in pixels.
        dtype: of the images; uint8 leaves their pixels in 0 … 255.
        threads: of the decoder.
        prefetch: batches that are decoded at a time, and finished ones that may lie ready.
        num_uniforms: random numbers that a sample gets for margins and recipes.
        clean_view: whether batches carry ``clean`` too.
        decode_on, hw_decoder_load: see ``Decoder``.
        landmarks: of the images of ``source``; batches then carry theirs, moved as augmentation and mirror move images.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        augment: str = "flip",
        shuffle: str = "global",
        shares: Sequence[Share] = (),
        image_size: int = 112,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        threads: int = 2,
        prefetch: int = 3,
        num_uniforms: int = 1,
        clean_view: bool = False,
        max_bad_fraction: float = 0.001,
        quarantine: str | Path | None = None,
        decode_on: str = "cpu",
        hw_decoder_load: float = 0.65,
        landmarks: Landmarks | None = None,
    ) -> None:
        augmentation = find_augmentation(augment)
        self._dtype = dtype
        self._accumulate = accumulate
        self._prefetch = prefetch
        self._quarantine = Quarantine(source, max_fraction=max_bad_fraction, path=quarantine)
        schedule = Schedule(
            len(source),
            batch_size * world_size * accumulate,
            seed=seed,
            shuffle=shuffle,
            num_uniforms=uniforms_before(augmentation) + num_uniforms,
            shares=shares,
        )
        self._samples = Samples(
            source,
            schedule,
            self._quarantine,
            augmentation,
            image_size=image_size,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            landmarks=landmarks,
        )
        self._decoder = Decoder(
            batch_size=batch_size,
            image_size=image_size,
            device=torch.device(device),
            threads=threads,
            transform=augmentation.transform,
            parameters=tuple(augmentation.draws),
            flip=augmentation.flip,
            clean_view=clean_view,
            decode_on=decode_on,
            hw_decoder_load=hw_decoder_load,
        )
        self._ahead: ReadAhead | None = None  # the batches from ``step`` on
        self.steps_per_epoch = schedule.steps_per_epoch
        self.step = 0
        self._waiting = Waiting(torch.device(device))

    @property
    def replaced(self) -> int:
        """How many images were found to be bad on the way to this step, by any rank, each counted once.

        A run that is resumed counts as if it had never been interrupted.
        """
        return self._quarantine.found_before(self.step // self._accumulate)

    def seek(self, step: int) -> None:
        """Go on with batch ``step``, counted from the start of training."""
        self.close()
        self.step = step

    def close(self) -> None:
        """End the decoding and all threads; going on with the iteration starts them again."""
        if self._ahead:
            self._ahead.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._waiting.counted():
            if not self._ahead or self._ahead.closed:
                self._ahead = self._started()
            batch = next(self._ahead)
        self.step += 1
        return batch

    def _started(self) -> ReadAhead:
        if self._ahead:
            self._ahead.close(patience=None)  # no two threads use the decoder
        batches, mend = self._samples.batches(self.step), self._samples.mend
        return ReadAhead(batches, self._decoder, depth=self._prefetch, mend=mend, dtype=self._dtype)

    def take_wait(self) -> float:
        """Seconds that training has waited for batches since the last call (`Waiting`)."""
        return self._waiting.take()


def read_once(
    source: Source,
    indices: np.ndarray,
    *,
    batch_size: int,
    image_size: int = 112,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int = 2,
    landmarks: Landmarks | None = None,
) -> Iterator[Batch]:
    """The samples ``indices`` in order and as they are; the last batch may be short. Labels are not looked at.

    The CPU decodes them, whatever the device, so that everyone evaluates the same pixels. With ``landmarks`` of the
    images, batches carry theirs.

    Raises ``ValueError`` or ``OSError`` naming an image that cannot be read or decoded.
    """
    indices = np.array(indices, np.int64)
    decoder = Decoder(batch_size=batch_size, image_size=image_size, device=torch.device(device), threads=threads)
    batches = (indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size))
    return read_batches(source, batches, decoder, dtype=dtype, landmarks=landmarks)


def read_batches(
    source: Source,
    batches: Iterable[np.ndarray],
    decoder: Decoder,
    *,
    dtype: torch.dtype = torch.float32,
    parameters: Callable[[np.ndarray], Mapping[str, np.ndarray]] = lambda indices: {},
    on_bad: Callable[[int, str], None] | None = None,
    landmarks: Landmarks | None = None,
) -> Iterator[Batch]:
    """As ``read_once``, in given batches of indices, through a decoder whose transform has ``parameters(indices)``.

    ``on_bad`` is told the index of an image that cannot be read or decoded, and the reason, before its batch comes,
    in which a black one stands for it; without ``on_bad`` that is an error.
    """

    def read(chosen: np.ndarray) -> EncodedBatch:
        try:
            encoded, labels = source.read(chosen)
        except (ValueError, OSError):
            if on_bad is None:
                raise
            encoded, labels = [_read_or_tell(source, index, on_bad) for index in chosen], source.labels(chosen)
        nothing = np.empty((len(chosen), 0), np.float32)
        points = landmarks(chosen) if landmarks else None
        return EncodedBatch(encoded, labels, chosen, nothing, parameters=parameters(chosen), landmarks=points)

    def mend(batch: EncodedBatch, reasons: dict[int, str]) -> EncodedBatch:
        for row, reason in reasons.items():
            if on_bad is None:
                raise UserError(f"{source.describe(int(batch.indices[row]))}: {reason}")
            on_bad(int(batch.indices[row]), reason)
        encoded = [STAND_IN if row in reasons else image for row, image in enumerate(batch.encoded)]
        return replace(batch, encoded=encoded)

    ahead = ReadAhead(map(read, batches), decoder, depth=_DEPTH, mend=mend, dtype=dtype)
    try:
        yield from ahead
    finally:
        ahead.close()


def _read_or_tell(source: Source, index: np.integer, on_bad: Callable[[int, str], None]) -> np.ndarray:
    """An encoded image, or a black one."""
    try:
        return source.read(np.array([index]))[0][0]
    except (ValueError, OSError) as error:
        on_bad(int(index), str(error))
        return STAND_IN
