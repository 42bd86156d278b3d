"""Published and own weights into a backbone, whatever file they come in, without running anything from that file."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from models.detect import backbone_prefixes, guess_architecture
from models.mobilefacenet_files import translated
from models.registry import BACKBONES, create_model, model_arguments
from models.timm_backbone import TimmBackbone
from models.weight_files import named_tensors, read_file, weight_file
from pipelines.common.errors import UserError, brief, one_line

# The images that published networks were trained on where they are not RGB in [-1, 1], as arguments of `create_model`.
_TRAINED_ON = {
    "AdaFace": {"bgr": True},
    "MagFace": {"bgr": True, "unit_range": True},
    "foamliu/MobileFaceNet": {"imagenet": True},
}


class Weights(NamedTuple):
    """The tensors of a backbone under their published names."""

    tensors: dict[str, Tensor]
    origin: str | None = None  # whose layout the file has, where that is another project's

    @property
    def options(self) -> dict[str, bool]:
        """Arguments of `create_model` that the origin tells."""
        return _TRAINED_ON.get(self.origin or "", {})


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file (see `read_weights`) into ``model``.

    A backbone of timm also takes what timm publishes for its part; its head then keeps the weights that it has.

    Raises:
        ValueError: when they do not fit, naming what is missing, unexpected and of another shape.
    """
    content = read_file(weight_file(Path(path)))
    if isinstance(model, TimmBackbone) and (tensors := _of_part(content, model, model.model)):
        try:
            left = model.load_pretrained(tensors)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        text = f"; {len(left)} of its tensors have no place here: {brief(left)}" if left else ""
        warnings.warn(f"{path} holds timm's part alone: the head that makes the embeddings is new{text}", stacklevel=2)
        return
    weights = _weights(content, Path(path), model)
    _fit(model, weights.tensors, path)
    lacking = [f"{name}={value}" for name, value in weights.options.items() if getattr(model, name, value) != value]
    if lacking:
        warnings.warn(
            f"{path} comes from {weights.origin}, which trains on other images: create the model with "
            f"{', '.join(lacking)}",
            stacklevel=2,
        )


def load_backbone(path: str | Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone in a file or folder, in evaluation mode, and the arguments of `create_model` that made it.

    Args:
        path: a file or folder that `read_weights` takes.
        options: arguments of `create_model`. What is not given comes from the ``config.json`` or ``config.yaml`` near
            the weights, or, when there is none, from the names and shapes of the tensors; those that say which images
            a network was trained on (``bgr`` and the like), from the project whose layout the file has.
    """
    path = Path(path)
    described = _described(path)
    found = _of_name(described, options) if described else None
    weights = read_weights(path, _expected(path, (found or {}) | options))
    if found is None:
        found = _of_name(_guessed(weights.tensors, path, options.get("name")), options)
    options = {"embedding_size": 512, "input_size": 112} | found | options
    known = model_arguments(options["name"])
    told: dict[str, Any] = {name: value for name, value in weights.options.items() if name in known}
    options = told | options
    model = create_model(**options)
    _fit(model, weights.tensors, path)
    return model.eval(), options


def read_weights(path: str | Path, model: nn.Module | None = None) -> Weights:
    """The backbone's tensors in a file or folder; ``model``: one to look for, which need not be known here.

    Understood are state dicts, bare or in any section of a checkpoint, with the prefixes that wrappers leave, as
    ``.safetensors`` or as written by `torch.save`; run folders and sharded checkpoints of Facemill; folders in Hugging
    Face's layout. Of several networks in a file the one of the most tensors is taken, the first of equals, with a
    warning.

    Files that `torch.save` wrote since PyTorch 1.6, and the checkpoints of a run, hold checksums, which are checked.
    Older files of PyTorch's and ``.safetensors`` have none: a changed bit in them is a changed weight.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
        ValueError: when it is damaged, holds no state dict, or could be read only by running code that it names.
    """
    path = weight_file(Path(path))
    return _weights(read_file(path), path, model)


def _weights(content: Any, path: Path, model: nn.Module | None) -> Weights:
    named, origin = translated(dict(named_tensors(content)))
    tensors, prefix = _backbone_tensors(named, path, model)
    if prefix.endswith("features.module."):
        origin = "MagFace"
    elif "pytorch-lightning_version" in content and "body.0.res_layer.0.weight" in tensors:  # Lightning's, of an IR
        origin = "AdaFace"
    return Weights(tensors, origin)


def _backbone_tensors(named: dict[str, Tensor], path: Path, model: nn.Module | None) -> tuple[dict[str, Tensor], str]:
    """The backbone's tensors under their published names, and what stood before these."""
    if not named:
        raise UserError(f"{path} holds no tensors of a backbone")
    own = list(model.state_dict()) if model else []
    prefixes = backbone_prefixes(named, own)
    if not prefixes:
        raise UserError(f"{path} holds tensors of no backbone that is known here: {brief(list(named))}")
    if len(prefixes) > 1:
        networks = ", ".join(prefix or "the outermost" for prefix in prefixes)
        warnings.warn(f"{path} holds several networks ({networks}); {networks.split(', ')[0]} is read", stacklevel=2)
    prefix = prefixes[0]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
    tensors.pop("weight", None)  # TopoFR keeps the class centres in its backbone
    return {name: tensor for name, tensor in tensors.items() if "/" not in name}, prefix


def _of_part(content: Any, model: nn.Module, part: nn.Module) -> dict[str, Tensor] | None:
    """The tensors in a file under the names of a ``part`` of ``model``; None where all of ``model`` is in it."""
    named = dict(named_tensors(content))
    own = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    ends = [name.removesuffix(own[0]) for name in named if name.endswith(own[0])]
    if any(all(prefix + name in named for name in own) for prefix in ends):
        return None
    prefix = (backbone_prefixes(named, list(part.state_dict())) or [""])[0]
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}


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
        if not file.is_file():
            continue
        text = file.read_bytes()
        try:
            found = yaml.safe_load(text)  # JSON is YAML too
        except Exception:  # of what is no YAML, PyYAML raises many kinds
            continue
        if isinstance(found, dict):
            yield found


def _of_name(found: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What was ``found`` of a backbone, or its sizes alone where the ``options`` name another."""
    if options.get("name", found["name"]) == found["name"]:
        return found
    return {size: found[size] for size in ("embedding_size", "input_size") if size in found}


def _expected(path: Path, options: dict[str, Any]) -> nn.Module | None:
    """The backbone that a file is said to hold, without memory for its weights; None where nothing names it."""
    if options.get("name") not in BACKBONES:
        return None
    try:
        with torch.device("meta"):
            return create_model(**options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # torch's and Python's, of values that no network has
        told = ", ".join(f"{name}: {value}" for name, value in options.items())
        raise UserError(f"{path}: there is no network of {told} ({one_line(error)}): mend its config") from error


def _guessed(tensors: dict[str, Tensor], path: Path, name: str | None) -> dict[str, Any]:
    try:
        return guess_architecture(tensors)
    except ValueError as error:
        if name is None:
            raise UserError(f"{path}: {error}") from None
    found: dict[str, Any] = {"name": name}
    if "features.weight" in tensors:  # the last batch norm of a backbone of timm
        found["embedding_size"] = len(tensors["features.weight"])
    return found


def require_finite(model: nn.Module) -> None:
    """Raise a ValueError that names the first tensor of ``model`` with NaN or infinity in it."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"the weights are not finite: {name} holds NaN or infinity. Has the training diverged?")


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
        text = "; ".join(f"{len(names)} {kind}: {brief(names)}" for kind, names in problems.items() if names)
        raise UserError(f"{path} does not fit the model: {text}")
    model.load_state_dict(tensors, strict=False)
