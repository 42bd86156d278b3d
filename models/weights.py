"""Published and own weights into a backbone, whatever file they come in, without running anything from that file."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architecture import guess_architecture
from models.ir import IR
from models.registry import create_model, model_arguments
from models.sharded import read_sharded

# Where training scripts keep the backbone's state dict among other things, and what they put before its names.
_SECTIONS = ("state_dict", "state_dict_backbone", "backbone", "model")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.")


class Weights(NamedTuple):
    """The tensors of a backbone under their published names."""

    tensors: dict[str, Tensor]
    bgr: bool  # they expect BGR images, as AdaFace's published (Lightning) checkpoints do


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file (see `read_weights`) into ``model``.

    Raises:
        ValueError: when they do not fit, naming what is missing, unexpected and of another shape.
    """
    weights = read_weights(path)
    _fit(model, weights.tensors, path)
    if weights.bgr and isinstance(model, IR) and not model.bgr:
        warnings.warn(
            f"{path} comes from AdaFace, which trains on BGR images: create the model with bgr=True", stacklevel=2
        )


def load_backbone(path: str | Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone in a file or folder, in evaluation mode, and the arguments of `create_model` that made it.

    Args:
        path: a file or folder that `read_weights` takes.
        options: arguments of `create_model`. What is not given comes from the ``config.json`` or ``config.yaml`` near
            the weights, or, when there is none, from the names and shapes of the tensors.
    """
    path = Path(path)
    weights = read_weights(path)
    found = _described(path) or _guessed(weights, path)
    if options.get("name", found["name"]) != found["name"]:
        found = {size: found[size] for size in ("embedding_size", "input_size") if size in found}
    options = {"embedding_size": 512, "input_size": 112} | found | options
    model = create_model(**options)
    _fit(model, weights.tensors, path)
    return model.eval(), options


def read_weights(path: str | Path) -> Weights:
    """The backbone's tensors in a file or folder.

    Understood are state dicts, bare or within the checkpoints of arcface_torch, TopoFR, TransFace, GB-CosFace,
    ContraFace and AdaFace (Lightning), with the prefixes that wrappers leave, as ``.safetensors`` or as written by
    `torch.save`; run folders and sharded checkpoints of Facemill; folders in Hugging Face's layout.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
        ValueError: when it holds no state dict, or could be read only by running code that it names.
    """
    path = _file(Path(path))
    if path.is_dir():
        content: Any = read_sharded(path)
    elif path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None
    else:
        content = _unpickle(path)
    bgr = isinstance(content, dict) and "pytorch-lightning_version" in content
    return Weights(_backbone_tensors(content, path), bgr)


def _file(path: Path) -> Path:
    """The weights meant by a folder: its file of weights, or the folder itself when it is a sharded checkpoint."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_dir() or (path / ".metadata").exists():
        return path
    for name in ("model.safetensors", "model.pt", "best.pt"):
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(f"{path} holds no model.safetensors, model.pt or best.pt: has its training finished?")


# What training scripts keep beside the weights: Lightning's callbacks and settings, scores, command lines.
_BYSTANDERS = ("pytorch_lightning.", "lightning.", "numpy.", "argparse.", "easydict.")


class _Bystander:
    """Stands for what a file names beside the tensors; whatever is done to it does nothing, and nothing is imported."""

    def __new__(cls, *arguments: Any) -> Any:
        # Subclasses of dict are made empty and filled then, which PyTorch does to its own kinds of dict only.
        return super().__new__(cls) if arguments else OrderedDict()

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickle(path: Path) -> Any:
    bystanders: list[str] = []
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        bystanders = [name for name in foreign if name.startswith(_BYSTANDERS)]
    except Exception:  # an older format, of which PyTorch cannot tell this
        pass
    try:
        with torch.serialization.safe_globals([(_Bystander, name) for name in bystanders]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if not named:
            raise ValueError(f"{path} is no file of weights that PyTorch or safetensors wrote") from None
        raise ValueError(
            f"{path} is refused: reading it would run code ({named[1]}). Where you trust it, let the program that "
            "wrote it save the plain state dict: torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:  # damaged files raise many kinds
        raise ValueError(f"{path} is no file of weights: {error}") from None


def _backbone_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    content = content if isinstance(content, dict) else {}
    for section in _SECTIONS:
        if isinstance(content.get(section), dict):
            content = content[section]
            break
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    while inner := next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(inner): value for name, value in tensors.items() if name.startswith(inner)}
    tensors.pop("weight", None)  # TopoFR keeps the class centres in its backbone
    if not tensors:
        raise ValueError(f"{path} holds no tensors of a backbone")
    return tensors


def run_config(path: Path) -> dict[str, Any] | None:
    """The config of the training run that wrote the weights at ``path``; None where there is none."""
    for found in _configs(path):
        if isinstance(found.get("model"), dict) and "train" in (found.get("data") or ()):
            return found
    return None


def _described(path: Path) -> dict[str, Any] | None:
    """The model's arguments from a ``config.json`` (Hugging Face's layout) or a run's ``config.yaml`` near the file."""
    for found in _configs(path):
        found = found["model"] if isinstance(found.get("model"), dict) else found
        known = model_arguments(str(found.get("name")))
        if known:
            return {name: value for name, value in found.items() if name in known}
    return None


def _configs(path: Path) -> Iterator[dict[str, Any]]:
    """What the configs near the weights say, those of other projects among them."""
    # A run keeps its sharded checkpoints two folders below its config.
    folders = (path, path.parent.parent) if path.is_dir() else (path.parent,)
    for file in (folder / name for folder in folders for name in ("config.json", "config.yaml")):
        try:
            found = yaml.safe_load(file.read_text())  # JSON is YAML too
        except (FileNotFoundError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            yield found


def _guessed(weights: Weights, path: Path) -> dict[str, Any]:
    try:
        options = guess_architecture(weights.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return options | ({"bgr": True} if weights.bgr and "bgr" in model_arguments(options["name"]) else {})


def _fit(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = {
        "missing": sorted(own.keys() - tensors.keys() - optional),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": misshaped,
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {kind}: {_brief(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{path} does not fit the model: {text}")
    model.load_state_dict(tensors, strict=False)


def _brief(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
