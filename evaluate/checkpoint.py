"""A trained network from whatever holds it: a run folder, its ``model.pt``, any state dict, or an ONNX file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights import load_backbone


@dataclass(frozen=True)
class Network:
    """A model from images (b, 3, input_size, input_size), RGB in [-1, 1], to embeddings, in evaluation mode."""

    model: nn.Module
    input_size: int


def load_network(path: Path, name: str | None = None, device: torch.device | str = "cpu") -> Network:
    """The network at ``path``; ``name`` is the backbone where neither a config beside it nor its tensors tell."""
    if path.suffix == ".onnx":
        model = OnnxModel(path, device)
        return Network(model.eval(), model.input_size)
    backbone, options = load_backbone(path, **({"name": name} if name else {}))
    return Network(backbone.to(device, memory_format=torch.channels_last), options.get("input_size", 112))


class OnnxModel(nn.Module):
    """An ONNX network run by onnxruntime; images and embeddings pass through the CPU.

    Graphs that begin with a subtraction and a multiplication normalise pixels of 0...255 themselves, as insightface's
    exports do; all others get [-1, 1].
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise ValueError("ONNX files need two packages: pip install 'facemill[onnx]'") from None
        try:
            nodes = onnx.load(str(path), load_external_data=False).graph.node
            providers = ["CUDAExecutionProvider"] if torch.device(device).type == "cuda" else []
            available = set(onnxruntime.get_available_providers())
            self.session = onnxruntime.InferenceSession(
                str(path), providers=[*(available & set(providers)), "CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise classes of their own
            raise ValueError(f"{path} is no usable ONNX file: {error}") from None
        self.takes_pixels = [node.op_type for node in nodes[:2]] == ["Sub", "Mul"]
        self.input = self.session.get_inputs()[0]
        batch, _, height, width = self.input.shape
        self.batch = batch if isinstance(batch, int) else None
        self.input_size = height if isinstance(height, int) else 112
        if isinstance(width, int) and width != self.input_size:
            raise ValueError(f"{path} takes images of {height} x {width}; only square ones are supported")

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() + 1) * 127.5 if self.takes_pixels else images.float()
        pixels = pixels.contiguous().cpu()
        parts = pixels.split(self.batch or len(pixels))
        return torch.cat(
            [torch.from_numpy(self.session.run(None, {self.input.name: part.numpy()})[0]) for part in parts]
        ).to(images.device)
