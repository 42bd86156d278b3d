"""Encoded images → batches of pixels on the device, by a DALI pipeline that is fed some batches ahead."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, __version__, fn, pipeline_def
from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]  # which the stub leaves out
from nvidia.dali.data_node import DataNode
from nvidia.dali.tensors import TensorCPU
from nvidia.dali.types import DALIDataType, DALIImageType
from torch import Tensor

from pipelines.common import drivers
from pipelines.common.errors import UserError, unknown
from pipelines.loading.admission import Admission
from pipelines.loading.batch import FLIP
from pipelines.loading.resize import resized, resized_on_host

PLACES = ("cpu", "gpu")  # where images are decoded

_EXPECTED_SIDE = 112  # pixels; what decoding on a GPU reserves memory for. Larger images make it grow


Transform = Callable[..., DataNode]


class UndecodableError(Exception):
    """Some images of a batch do not decode. ``reasons`` maps their rows to what is to be said of them."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} images do not decode")
        self.reasons = reasons


class _Submission(NamedTuple):
    encoded: list[np.ndarray]  # as DALI gets them
    bad: dict[int, str]  # rows that hold no image of their own, and why
    parameters: Mapping[str, np.ndarray]


class Decoder:
    """Decodes batches, resizes and transforms them, in the order in which they are submitted.

    Submit some batches, then take one out and submit another in turns: what was submitted before the first ``result``
    is how many are worked on at a time. Images for a CUDA device are decoded on the ``cpu`` and then copied, or there
    by nvJPEG: ``decode_on`` ``gpu``, of which ``hw_decoder_load`` is the share of its hardware unit, if it has one.
    Both give the same pixels up to rounding.

    ``transform(images, image_size, **parameters)`` maps DALI images, uint8 RGB, to such of ``image_size``; its
    parameters are called ``parameters``. It gets images of ``image_size``, or, with ``any_size``, as they are. With
    ``flip``, images are mirrored behind it where the parameter ``FLIP`` is 1.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        image_size: int,
        device: torch.device,
        threads: int,
        transform: Transform | None = None,
        parameters: Sequence[str] = (),
        flip: bool = False,
        any_size: bool = False,
        clean_view: bool = False,
        decode_on: str = "cpu",
        hw_decoder_load: float = 0.65,
    ) -> None:
        if decode_on not in PLACES:
            raise unknown("place to decode at", decode_on, PLACES)
        if decode_on == "gpu" and device.type != "cuda":
            raise UserError("images for a CPU are decoded there: data.decode: gpu needs a GPU; on a CPU it is cpu")
        if device.type == "cuda" and GetCUDADeviceCount() == 0:
            raise UserError(f"torch finds a GPU, NVIDIA DALI does not: {drivers.why_dali_has_no_gpu()}")
        if not f"{__version__}.".startswith(f"{drivers.SOUND_DALI}."):
            build = next(iter(drivers.dali_builds()), "nvidia-dali-cuda120")
            raise UserError(
                f"NVIDIA DALI {__version__} may end the process at a damaged image; install a version that does not:"
                f" pip install '{build}~={drivers.SOUND_DALI}.0'"
            )
        self._batch_size = batch_size
        self._image_size = image_size
        self._transform = transform
        self._parameters = parameters
        self._flip = flip
        self.device = device
        self._threads = threads
        self._clean_view = clean_view
        self._decode_on = decode_on
        self._hw_decoder_load = hw_decoder_load
        # To look at each image's size costs a sixth of the decoding. So the graph does without until another size turns
        # up, except where a transform behind it could hide that. On a CPU without a transform, torch resizes instead.
        self._resize = transform is not None and not any_size
        self._admission = Admission()
        self._pipeline: Pipeline | None = None
        self._submitted: deque[_Submission] = deque()

    def submit(self, encoded: Sequence[np.ndarray], parameters: Mapping[str, np.ndarray] | None = None) -> None:
        """Add a batch: arrays uint8 (bytes,), not to be changed any more, and its parameters (b, ...)."""
        self._submitted.append(_Submission(*self._admission.admit(encoded), parameters or {}))
        if self._pipeline:
            _feed(self._pipeline, self._submitted[-1])
            self._pipeline.schedule_run()

    def result(self) -> tuple[Tensor, ...]:
        """Take out the oldest batch: uint8 (b, image_size, image_size, 3), RGB, on the device; it owns its memory.

        With ``clean_view`` the images before the transform follow, from the same decoding, mirrored like them.

        Raises ``UndecodableError``; the batch is then still there and waits for ``amend``.
        """
        if self._submitted[0].bad:
            raise UndecodableError(self._submitted[0].bad)
        self._pipeline = self._pipeline or self._started()
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            views = self._pipeline.outputs(stream)
        except RuntimeError as error:
            self._pipeline = None
            if reasons := self._undecodable(self._submitted[0].encoded):
                raise UndecodableError(reasons) from error
            raise
        images = views[0]
        if not images.is_dense_tensor() or images.as_tensor().shape()[1:3] != [self._image_size, self._image_size]:
            if self.device.type == "cpu" and self._transform is None:
                self._submitted.popleft()
                return tuple(resized_on_host(view, self._image_size) for view in views)
            assert not self._resize
            self._resize = True
            self._pipeline = None
            return self.result()
        self._submitted.popleft()
        return tuple(torch.from_dlpack(view.as_tensor()) for view in views)

    def amend(self, encoded: Sequence[np.ndarray]) -> None:
        """Give the oldest batch other images and start anew with it."""
        self._submitted[0] = _Submission(*self._admission.admit(encoded), self._submitted[0].parameters)
        self._pipeline = None

    def clear(self) -> None:
        """Forget all batches and end the pipeline and its threads."""
        self._pipeline = None
        self._submitted.clear()

    def _started(self) -> Pipeline:
        """A pipeline that works on all that is submitted."""
        pipeline = self._build(self._batch_size, depth=len(self._submitted))
        for submission in self._submitted:
            _feed(pipeline, submission)
        pipeline.schedule_run()  # the first call starts as many batches as the queue is deep
        return pipeline

    def _build(self, batch_size: int, depth: int, decode_only: bool = False) -> Pipeline:
        on_gpu = self.device.type == "cuda"
        device_index = torch.cuda.current_device() if on_gpu and self.device.index is None else self.device.index
        changes: dict[str, Any] = dict(
            transform=self._transform,
            parameters=self._parameters,
            flip=self._flip,
            resize=self._resize,
            clean_view=self._clean_view,
        )
        pipeline = _graph(
            self._image_size,
            **({} if decode_only else changes),
            on_gpu=on_gpu,
            decode_on=self._decode_on,
            hw_decoder_load=self._hw_decoder_load,
            batch_size=batch_size,
            num_threads=self._threads,
            device_id=device_index if on_gpu else None,
            prefetch_queue_depth=depth,
        )
        pipeline.build()
        return pipeline

    def _undecodable(self, encoded: Sequence[np.ndarray]) -> dict[int, str]:
        """The rows of the images that do not decode, each tried alone, and what is to be said of them."""
        reasons = {}
        pipeline = None
        for row, image in enumerate(encoded):
            pipeline = pipeline or self._build(1, depth=1, decode_only=True)
            pipeline.feed_input("encoded", [TensorCPU(image)])
            try:
                pipeline.run()
            except RuntimeError:  # says no more than a status number
                reasons[row] = f"does not decode ({len(image)} bytes that begin with '{image[:4].tobytes().hex()}')"
                pipeline = None
        return reasons


def _feed(pipeline: Pipeline, submission: _Submission) -> None:
    pipeline.feed_input("encoded", [TensorCPU(image) for image in submission.encoded])  # faster than arrays
    for name, values in submission.parameters.items():
        pipeline.feed_input(name, values)


@pipeline_def(enable_conditionals=True)
def _graph(
    image_size: int,
    transform: Transform | None = None,
    parameters: Sequence[str] = (),
    *,
    flip: bool = False,
    resize: bool = False,
    clean_view: bool = False,
    on_gpu: bool,
    decode_on: str,
    hw_decoder_load: float,
) -> tuple[DataNode, ...]:
    # The bytes are kept until the batch is out. A CPU is done with them then, a GPU may go on reading: it gets a copy.
    encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1, no_copy=decode_on == "cpu")
    inputs = {name: fn.external_source(name=name) for name in parameters}
    if decode_on == "gpu":
        images = fn.decoders.image(
            encoded,
            device="mixed",
            output_type=DALIImageType.RGB,
            hw_decoder_load=hw_decoder_load,
            jpeg_fancy_upsampling=True,  # as on the CPU, and in every other decoder
            preallocate_width_hint=_EXPECTED_SIDE,
            preallocate_height_hint=_EXPECTED_SIDE,
        )
    else:
        images = fn.decoders.image(encoded, device="cpu", output_type=DALIImageType.RGB)
        if on_gpu:
            images = images.gpu()
    if resize:
        shape = images.shape()
        if shape[0] != image_size or shape[1] != image_size:
            images = resized(images, image_size)
    views = [images, images] if clean_view else [images]
    if transform is not None:
        views[0] = transform(images, image_size, **inputs)
    if flip:
        flips = fn.external_source(name=FLIP)
        return tuple(fn.flip(view, horizontal=flips) for view in views)
    # A copy: images that no operator touches would share their memory with the clean ones.
    return views[0], *map(fn.copy, views[1:])
