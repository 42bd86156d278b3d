"""ONNX networks run by onnxruntime, whatever type, layout, batch and further outputs their files have."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from onnxruntime import get_available_providers
from torch import Tensor, nn

from evaluate.features.onnx_graph import range_of_start
from models.onnx_file import Provider, quiet_session
from pipelines.common.errors import UserError, one_line
from pipelines.loading.landmarks import template_landmarks

# What onnxruntime calls the types of images that can be given; integers take pixels of 0...255.
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
MIN_DIMENSION = 4  # of an embedding; fewer numbers an image are scores, an age, a place


class OnnxNetwork(nn.Module):
    """Images (b, 3, input_size, input_size) of the values that the file takes to float32 embeddings (b, d).

    A file with a second input ``landmarks`` takes landmarks (b, 5, 2), too; those of the template where none are given.

    Images and embeddings pass through the CPU. Where it computes, too, images are worked on one at a time, each by one
    thread, as many side by side as torch takes threads: threads that share an image wait for each other half of the
    time. So an embedding depends on its image alone, with dynamic quantisation, too.

    Raises:
        ValueError: when the file cannot be read, or is no network from square images of three channels to one
            embedding each. What an output holds shows in the first call only.
    """

    splits_batches = True

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        self.path = path
        device = torch.device(device)
        providers: list[Provider] = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in get_available_providers():
            # The process's own GPU, and float32 that means float32: by itself it takes the first one, and TF32.
            options = {"device_id": str(device.index or 0), "use_tf32": "0"}
            providers = [("CUDAExecutionProvider", options), *providers]
        try:
            self.session = quiet_session(str(path), providers, threads=1)
        except Exception as error:  # onnxruntime raises classes of its own
            raise UserError(f"{path} is no usable ONNX file: {one_line(error)}") from None
        inputs = self.session.get_inputs()
        self.wants_landmarks = len(inputs) == 2 and inputs[1].name == "landmarks"
        if len(inputs) != 1 + self.wants_landmarks:
            raise UserError(f"{path} has {len(inputs)} inputs ({_list(inputs)}); one of images is expected")
        self.input = inputs[0]
        if self.input.type not in _TYPES or len(self.input.shape) != 4:
            raise UserError(f"{path} takes {_list(inputs)}; images (batch, 3, height, width) are expected")
        self.dtype = _TYPES[self.input.type]
        batch, *image = (size if isinstance(size, int) and size > 0 else None for size in self.input.shape)
        self.channels_last = image[2] == 3 and image[0] != 3
        height, width, channels = image if self.channels_last else (image[1], image[2], image[0])
        if channels not in (3, None):
            raise UserError(f"{path} takes images of {channels} channels, {_list(inputs)}; colour images have 3")
        if height and width and height != width:
            raise UserError(f"{path} takes images of {height} x {width}; only square ones are supported")
        on_cpu = self.session.get_providers() == ["CPUExecutionProvider"]
        self.batch = batch or (1 if on_cpu else None)
        self.side_by_side = ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1)
        self.input_size = height or width or 112
        self.output: str | None = None

    def input_range(self) -> tuple[tuple[float, float], str]:
        """The values of black and white that the network takes, and what tells them."""
        if issubclass(self.dtype, np.integer):
            return (0, 255), "as its input has integers"
        shape = (self.batch or 1, 3, self.input_size, self.input_size)
        try:
            found = range_of_start(self.path, self._arranged(np.empty(shape)).shape, self.dtype)
        except Exception as error:
            raise UserError(
                f"{self.path} does not show which images it takes ({one_line(error)}): give --input-range"
            ) from None
        if found is None:
            return (-1, 1), "as the graph normalises nothing"
        return found, "as the graph's first nodes normalise it"

    def forward(self, images: Tensor, *landmarks: Tensor) -> Tensor:
        inputs = self.inputs(images, *landmarks)
        try:
            embeddings = self._run(*inputs)
        except ValueError:
            if self.batch or len(images) == 1:
                raise
            self.batch = 1  # some files have a batch of 1 in their graph, whatever they declare
            embeddings = self._run(*inputs)
        return torch.from_numpy(embeddings).to(images.device)

    def inputs(self, images: Tensor, *landmarks: Tensor) -> tuple[np.ndarray, ...]:
        """What the file's inputs take for images as `forward` takes them: pixels in its type and layout, landmarks."""
        pixels = images.float().cpu().numpy()
        pixels = np.rint(pixels).clip(0, 255) if issubclass(self.dtype, np.integer) else pixels
        pixels = np.ascontiguousarray(self._arranged(pixels), self.dtype)
        places = tuple(each.float().cpu().numpy() for each in landmarks)
        if self.wants_landmarks and not landmarks:
            places = (template_landmarks(np.arange(len(pixels))),)
        return pixels, *places

    def _arranged(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.transpose(0, 2, 3, 1) if self.channels_last else pixels

    def _run(self, *inputs: np.ndarray) -> np.ndarray:
        """Embeddings float32 (n, d), in batches of the size ``batch``, the last one filled up."""
        count = len(inputs[0])
        size = self.batch or count

        def part(start: int) -> np.ndarray:
            rows = np.arange(start, start + size).clip(max=count - 1)
            return self._embeddings(*(values[rows] for values in inputs))[: count - start]

        return np.concatenate(list(self.side_by_side.map(part, range(0, count, size))))

    def _embeddings(self, pixels: np.ndarray, *landmarks: np.ndarray) -> np.ndarray:
        # Read once: another thread may find out which output it is while this one runs.
        names = [self.output] if self.output else [output.name for output in self.session.get_outputs()]
        feed = {self.input.name: pixels} | dict(zip(("landmarks",), landmarks))
        try:
            outputs = self.session.run(names, feed)
        except Exception as error:
            raise UserError(f"{self.path} does not run on images {pixels.shape}: {one_line(error)}") from None
        found = dict(zip(names, map(np.asarray, outputs)))
        fitting = {
            name: array.reshape(len(pixels), -1)
            for name, array in found.items()
            if array.ndim > 1 and len(array) == len(pixels) and max(array.shape[1:]) == array[0].size >= MIN_DIMENSION
        }
        if len(fitting) != 1:
            text = ", ".join(f"{name} {array.shape}" for name, array in found.items())
            raise UserError(
                f"{self.path} gives {text} for a batch of {len(pixels)}: {len(fitting)} of these could be embeddings, "
                "a row an image, and one is expected. Is it a detector, or another network than for recognition?"
            )
        ((self.output, embeddings),) = fitting.items()
        return embeddings.astype(np.float32)


def _list(inputs: list) -> str:
    return ", ".join(f"{entry.name}: {entry.type} {entry.shape}" for entry in inputs)
