"""Batches for training, endless and from any step, and for evaluation, once and in order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.common.cpu import one_thread
from pipelines.common.errors import UserError
from pipelines.common.pixels import normalise
from pipelines.loading.augment import find_augmentation
from pipelines.loading.decoder import Decoder, UndecodableError
from pipelines.loading.quarantine import Quarantine
from pipelines.loading.schedule import Schedule
from pipelines.sources.source import Source

_FLIP = 0  # the column of the schedule's uniforms that decides on the mirror image; those of the augmentation follow
_HINT_STEPS = 8  # of which the source is told at a time
_AHEAD = 3  # batches that ``read_once`` has under way
_MOST_STALLS = 10_000  # that are kept for ``take_wait``


@dataclass
class Batch:
    images: Tensor  # (b, 3, h, w), RGB in [-1, 1], channels-last, on the device
    labels: Tensor  # int64 (b,), on the device
    indices: Tensor  # int64 (b,), the samples' indices in the source, on the CPU
    uniforms: Tensor  # float32 (b, num_uniforms), random in [0, 1), on the CPU: for margins and recipes
    clean: Tensor | None = None  # with ``clean_view``: the images before augmentation, mirrored like them


@dataclass
class _Gathered:
    """A batch before its images are decoded."""

    encoded: list[np.ndarray]  # uint8 (bytes,)
    labels: np.ndarray  # int64 (b,)
    indices: np.ndarray  # int64 (b,)
    uniforms: np.ndarray  # float32 (b, 1 + the augmentation's + those left over)


class Loader:
    """An endless iterator over the batches of one rank, a pure function of (seed, step).

    ``step`` counts batches, that is, of ``accumulate`` to a global step, and is the one that comes next; ``seek`` sets
    it. ``steps_per_epoch`` are global steps.

    A sample that cannot be read or decoded, or whose label is none of the source's classes, is bad: it is logged,
    written to the file ``quarantine`` (a JSON object a line), which all ranks and restarts of a run share, and replaced
    by the schedule's substitute. ``ValueError`` ends the iteration when more than ``max_bad_fraction`` of all samples
    are bad or missing.

    Args:
        batch_size: of this rank; a global batch has ``batch_size * world_size * accumulate`` samples.
        accumulate: batches of this rank in a global batch. Batch j of rank r takes the (j * world_size + r)-th share.
        seed: of the order, the mirror images, the augmentation and ``Batch.uniforms``.
        augment, shuffle: names in ``AUGMENTATIONS`` and ``SHUFFLES``.
        image_size: side of the images in pixels.
        dtype: of the images; uint8 leaves their pixels in 0 … 255.
        threads: of the decoder.
        prefetch: batches that are decoded at a time.
        num_uniforms: random numbers that a sample gets for margins and recipes.
        clean_view: whether batches carry ``clean`` too.
        decode_on, hw_decoder_load: see ``Decoder``.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        augment: str = "flip",
        shuffle: str = "global",
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
        decode_on: str = "gpu",
        hw_decoder_load: float = 0.65,
    ) -> None:
        augmentation = find_augmentation(augment)
        self._source = source
        self._augmentation = augmentation
        self._device = torch.device(device)
        self._dtype = dtype
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate
        self._prefetch = prefetch
        self._quarantine = Quarantine(source, max_fraction=max_bad_fraction, path=quarantine)
        self._own_uniforms = 1 + len(augmentation.draws)
        self._schedule = Schedule(
            len(source),
            batch_size * world_size * accumulate,
            seed=seed,
            shuffle=shuffle,
            num_uniforms=self._own_uniforms + num_uniforms,
        )
        self._decoder = Decoder(
            batch_size=batch_size,
            image_size=image_size,
            device=self._device,
            threads=threads,
            transform=augmentation.transform,
            parameters=tuple(augmentation.draws),
            clean_view=clean_view,
            decode_on=decode_on,
            hw_decoder_load=hw_decoder_load,
        )
        self._ahead: deque[_Gathered] = deque()  # the batches from ``step`` on that are being decoded
        self._hinted = 0  # the step up to which the source knows what will be read
        self.steps_per_epoch = self._schedule.steps_per_epoch
        self.step = 0
        self._waited = 0.0  # seconds on a CPU
        self._stalls: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(
            maxlen=_MOST_STALLS
        )  # on a GPU, begin and end of each

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
        """End the decoding and its threads; going on with the iteration starts them again."""
        self._decoder.clear()
        self._ahead.clear()
        self._hinted = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        while len(self._ahead) < self._prefetch:
            batch = self._gather(self.step + len(self._ahead))
            self._ahead.append(batch)
            uniforms = batch.uniforms[:, _FLIP + 1 : self._own_uniforms]
            self._decoder.submit(batch.encoded, self._augmentation.parameters(uniforms))
        begin = self._mark()
        pixels = self._decode()
        if begin and (end := self._mark()):
            self._stalls.append((begin, end))
        batch = self._ahead.popleft()
        self.step += 1
        flips = _to_device(batch.uniforms[:, _FLIP] < 0.5, self._device) if self._augmentation.flip else None
        images, *clean = (_to_images(view, flips, self._dtype) for view in pixels)
        finished = Batch(
            images=images,
            labels=_to_device(batch.labels, self._device),
            indices=torch.tensor(batch.indices),
            uniforms=torch.from_numpy(batch.uniforms[:, self._own_uniforms :]),
            clean=clean[0] if clean else None,
        )
        self._waited += time.perf_counter() - began
        return finished

    def take_wait(self) -> float:
        """Seconds that training has waited for batches since the last call.

        On a CPU that is all the time in the loader. A GPU is told to wait for a batch while the host goes on: there it
        is the time that its stream stood still, and this call waits for the last batch to have been there.
        """
        seconds, self._waited = self._waited, 0.0
        if self._device.type == "cuda":
            seconds = sum(_seconds_between(*stall) for stall in self._stalls)
        self._stalls.clear()
        return seconds

    def _mark(self) -> torch.cuda.Event | None:
        """A place in a GPU's stream whose time can be told afterwards."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _decode(self) -> tuple[Tensor, ...]:
        """The pixels of the first batch ahead, whose bad samples are replaced."""
        while True:
            try:
                return self._decoder.result()
            except UndecodableError as error:
                for row, reason in error.reasons.items():
                    self._quarantine.add(int(self._ahead[0].indices[row]), reason, self.step // self._accumulate)
                self._ahead[0] = self._gather(self.step)
                self._decoder.amend(self._ahead[0].encoded)

    def _gather(self, step: int) -> _Gathered:
        self._hint(step)
        place = self._place(step)
        scheduled, uniforms = self._schedule.slice(*place)
        num_classes = self._source.num_classes
        while True:
            indices = self._substitute(place, scheduled)
            try:
                encoded, labels = self._source.read(indices)
            except (ValueError, OSError):
                if not self._quarantine_unreadable(indices, step):
                    raise
                continue
            wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
            for row in wrong:
                reason = f"its label {labels[row]} is not in [0, {num_classes}); is the class count right?"
                self._quarantine.add(int(indices[row]), reason, step // self._accumulate)
            if not len(wrong):
                return _Gathered(encoded, labels, indices, uniforms)

    def _place(self, step: int) -> tuple[int, int, int, int]:
        """Epoch, step in it, share and number of shares: the schedule's place of this rank's batch ``step``."""
        step, part = divmod(step, self._accumulate)
        share, shares = part * self._world_size + self._rank, self._world_size * self._accumulate
        return *divmod(step, self.steps_per_epoch), share, shares

    def _hint(self, step: int) -> None:
        """Let the source know, some steps at a time, what will be read after the schedule's lead."""
        lead = self._schedule.lead * self._accumulate
        if step + lead < self._hinted:
            return
        first, self._hinted = max(self._hinted, step), step + lead + _HINT_STEPS * self._accumulate
        places = map(self._place, range(first, self._hinted))
        self._source.prefetch(np.concatenate([self._schedule.upcoming(*place) for place in places]))

    def _substitute(self, place: tuple[int, int, int, int], scheduled: np.ndarray) -> np.ndarray:
        """The indices with substitutes for the samples known as bad, by a rule that any number of ranks shares.

        A substitute that is bad itself, known or not, is replaced in turn, so that who found what, and when, does not
        matter.
        """
        if not self._quarantine:
            return scheduled
        indices = scheduled.copy()
        epoch, positions = place[0], self._schedule.positions(*place[1:])
        for row, index in enumerate(scheduled.tolist()):
            attempt = 0
            while index in self._quarantine:
                index = self._schedule.substitute(epoch, int(positions[row]), attempt)
                attempt += 1
            indices[row] = index
        return indices

    def _quarantine_unreadable(self, indices: np.ndarray, step: int) -> bool:
        """Try the samples one by one; whether a bad one was found."""
        found = False
        for row, index in enumerate(indices.tolist()):
            try:
                self._source.read(indices[row : row + 1])
            except (ValueError, OSError) as error:
                self._quarantine.add(index, str(error), step // self._accumulate)
                found = True
        return found


def read_once(
    source: Source,
    indices: np.ndarray,
    *,
    batch_size: int,
    image_size: int = 112,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int = 2,
) -> Iterator[Batch]:
    """The samples ``indices`` in order and as they are; the last batch may be short. Labels are not looked at.

    Raises ``ValueError`` or ``OSError`` naming an image that cannot be read or decoded.
    """
    indices = np.array(indices, np.int64)
    decoder = Decoder(batch_size=batch_size, image_size=image_size, device=torch.device(device), threads=threads)
    batches = (indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size))
    return read_batches(source, batches, decoder, dtype=dtype)


def read_batches(
    source: Source,
    batches: Iterable[np.ndarray],
    decoder: Decoder,
    *,
    dtype: torch.dtype = torch.float32,
    parameters: Callable[[np.ndarray], Mapping[str, np.ndarray]] = lambda indices: {},
) -> Iterator[Batch]:
    """As ``read_once``, in given batches of indices, through a decoder whose transform has ``parameters(indices)``."""
    to_read = iter(batches)
    ahead: deque[tuple[np.ndarray, np.ndarray]] = deque()
    try:
        while True:
            for chosen in islice(to_read, _AHEAD - len(ahead)):
                encoded, labels = source.read(chosen)
                decoder.submit(encoded, parameters(chosen))
                ahead.append((chosen, labels))
            if not ahead:
                return
            chosen, labels = ahead.popleft()
            try:
                (pixels,) = decoder.result()
            except UndecodableError as error:
                row, reason = next(iter(error.reasons.items()))
                raise UserError(f"{source.describe(int(chosen[row]))}: {reason}") from None
            yield Batch(
                images=_to_images(pixels, None, dtype),
                labels=_to_device(labels, decoder.device),
                indices=torch.from_numpy(chosen),
                uniforms=torch.empty(len(chosen), 0),
            )
    finally:
        decoder.clear()


def _seconds_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _to_images(pixels: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    """uint8 (b, h, w, 3), which may be overwritten → images as in ``Batch``, mirrored where ``flips`` (b,) says so."""
    images = pixels.permute(0, 3, 1, 2)
    if images.is_cuda:
        if flips is not None:
            images = torch.where(flips[:, None, None, None], images.flip(3), images)
        return images if dtype == torch.uint8 else normalise(images, dtype)
    with one_thread():  # the decoding has all the cores busy
        if flips is not None:
            for image in compress(images.unbind(), flips.tolist()):  # stays in the cache: faster than for all at once
                image.copy_(image.flip(2))
        return images if dtype == torch.uint8 else normalise(images, dtype)
