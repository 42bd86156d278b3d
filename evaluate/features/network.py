"""A trained network from whatever holds it: a run folder, its ``model.pt``, any state dict, or an ONNX file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluate.features.preprocessing import Preprocessed, Preprocessing, overruled
from models.folding import fold_batch_norms
from models.layers import IMAGENET_MEAN, IMAGENET_STD
from models.weights import load_backbone
from pipelines.common.errors import UserError


@dataclass(frozen=True)
class Network:
    """``model``, in evaluation mode, takes images (b, 3, input_size, input_size), RGB in [-1, 1], to embeddings."""

    model: nn.Module
    input_size: int
    input: str = "RGB in [-1, 1]"  # what the backbone or file inside takes, and what told so
    options: Mapping[str, Any] = field(default_factory=dict)  # of `create_model`, which made the backbone
    files: Sequence[Path] = ()  # that hold weights which are none of ``model``'s tensors: an ONNX file and its own
    preprocessing: Preprocessing = Preprocessing()  # what ``input`` tells, in all digits

    def digest(self) -> str:
        """A hash (SHA-256) of what it takes, of how it was made, and of its weights."""
        options = json.dumps(dict(self.options), sort_keys=True, default=str)
        digest = hashlib.sha256(f"{self.preprocessing!r} {self.input_size} {options}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def load_network(
    path: Path,
    backbone: str | None = None,
    device: torch.device | str = "cpu",
    given: Mapping[str, Any] | None = None,
) -> Network:
    """The network at ``path``, its batch norms folded into the layers in front of them.

    Args:
        path: a run folder, a state dict or an ``.onnx`` file.
        backbone: its name, where neither a config beside the weights nor their tensors tell.
        given: fields of `Preprocessing` that overrule what the file shows of the images that the network takes.
    """
    given = dict(given or {})
    if path.suffix.lower() == ".onnx":
        if backbone:
            raise UserError(f"{path} holds its network itself: --network {backbone} is for state dicts, leave it out")
        return _onnx_network(path, device, given)
    model, options = load_backbone(path, **({"name": backbone} if backbone else {}))
    size = options["input_size"]
    fold_batch_norms(model, torch.zeros(1, 3, size, size))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    bgr, unit_range, imagenet = (options.get(name, False) for name in ("bgr", "unit_range", "imagenet"))
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.0,), (1.0,))
    found = Preprocessing((0.0, 1.0) if unit_range or imagenet else (-1.0, 1.0), mean, std, bgr)
    preprocessing, text = overruled(found, "as the checkpoint tells" if bgr or unit_range or imagenet else "", given)
    if preprocessing == found:  # which the backbone does by itself
        return Network(model, size, text, options, preprocessing=preprocessing)
    model.bgr = model.unit_range = model.imagenet = False
    return Network(Preprocessed(preprocessing, model).eval(), size, text, options, preprocessing=preprocessing)


def _onnx_network(path: Path, device: torch.device | str, given: dict[str, Any]) -> Network:
    try:
        from evaluate.features.onnx_graph import files_of
        from evaluate.features.onnx_network import OnnxNetwork
    except ModuleNotFoundError:
        raise UserError("ONNX files need two packages: pip install 'facemill[onnx]'") from None
    model = OnnxNetwork(path, device)
    (low, high), why = ((-1, 1), "") if "input_range" in given else model.input_range()
    preprocessing, text = overruled(Preprocessing((float(low), float(high))), why, given)
    prepared = Preprocessed(preprocessing, model).eval()
    return Network(prepared, model.input_size, text, files=files_of(path), preprocessing=preprocessing)
