"""A trained network from whatever holds it: a run folder, its ``model.pt``, any state dict, or an ONNX file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluate.features.preprocessing import Preprocessed, Preprocessing, overruled
from models.weights import load_backbone
from pipelines.common.errors import UserError


@dataclass(frozen=True)
class Network:
    """A model from images (b, 3, input_size, input_size), RGB in [-1, 1], to embeddings, in evaluation mode."""

    model: nn.Module
    input_size: int
    input: str = "RGB in [-1, 1]"  # what the network inside takes, and what told so


def load_network(
    path: Path,
    name: str | None = None,
    device: torch.device | str = "cpu",
    given: Mapping[str, Any] | None = None,
) -> Network:
    """The network at ``path``.

    Args:
        path: a run folder, a state dict or an ``.onnx`` file.
        name: the backbone, where neither a config beside the weights nor its tensors tell.
        given: fields of `Preprocessing` that overrule what the file shows of the images that the network takes.
    """
    given = dict(given or {})
    if path.suffix.lower() == ".onnx":
        return _onnx_network(path, device, given)
    backbone, options = load_backbone(path, **({"name": name} if name else {}))
    backbone = backbone.to(device, memory_format=torch.channels_last)
    size = options["input_size"]
    bgr, unit_range = options.get("bgr", False), options.get("unit_range", False)
    found = Preprocessing((0, 1) if unit_range else (-1, 1), bgr=bgr)
    preprocessing, text = overruled(found, "as the checkpoint tells" if bgr or unit_range else "", given)
    if preprocessing == found:  # which the backbone does by itself
        return Network(backbone, size, text)
    backbone.bgr = backbone.unit_range = False
    return Network(Preprocessed(preprocessing, backbone).eval(), size, text)


def _onnx_network(path: Path, device: torch.device | str, given: dict[str, Any]) -> Network:
    try:
        from evaluate.features.onnx_network import OnnxNetwork
    except ModuleNotFoundError:
        raise UserError("ONNX files need two packages: pip install 'facemill[onnx]'") from None
    network = OnnxNetwork(path, device)
    input_range, why = ((-1, 1), "") if "input_range" in given else network.input_range()
    preprocessing, text = overruled(Preprocessing(input_range), why, given)
    return Network(Preprocessed(preprocessing, network).eval(), network.input_size, text)
