"""Published and own weights into a backbone, whatever file they come in, without running anything from that file."""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.detect import backbone_prefixes, guess_architecture
from models.lora import merged
from models.registry import create_model, model_arguments
from models.sharded import read_sharded
from pipelines.common.errors import UserError, one_line

# The images that published networks were trained on where they are not RGB in [-1, 1], as arguments of `create_model`.
_TRAINED_ON = {"AdaFace": {"bgr": True}, "MagFace": {"bgr": True, "unit_range": True}}


class Weights(NamedTuple):
    """The tensors of a backbone under their published names."""

    tensors: dict[str, Tensor]
    origin: str | None = None  # AdaFace or MagFace, where the file has the layout of their published checkpoints

    @property
    def options(self) -> dict[str, bool]:
        """Arguments of `create_model` that the origin tells."""
        return _TRAINED_ON.get(self.origin or "", {})


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file (see `read_weights`) into ``model``.

    Raises:
        ValueError: when they do not fit, naming what is missing, unexpected and of another shape.
    """
    weights = read_weights(path, model)
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
            the weights, or, when there is none, from the names and shapes of the tensors; ``bgr`` and ``unit_range``
            of networks that were trained on such images from the layout of AdaFace's and MagFace's files.
    """
    path = Path(path)
    weights = read_weights(path)
    found = _described(path) or _guessed(weights.tensors, path)
    if options.get("name", found["name"]) != found["name"]:
        found = {size: found[size] for size in ("embedding_size", "input_size") if size in found}
    options = {"embedding_size": 512, "input_size": 112} | found | options
    known = model_arguments(options["name"])
    told: dict[str, Any] = {name: value for name, value in weights.options.items() if name in known}
    options = told | options
    model = create_model(**options)
    _fit(model, weights.tensors, path)
    return model.eval(), options


def read_weights(path: str | Path, model: nn.Module | None = None) -> Weights:
    """The backbone's tensors in a file or folder; ``model`` is one that they may be of, beside those known here.

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
    path = _file(Path(path))
    if path.is_dir():
        content: Any = merged(read_sharded(path, "ema", "backbone"))  # averaged weights where there are some
    elif path.suffix.lower() == ".onnx":
        raise UserError(f"{path} is an ONNX file: the commands of evaluate run it, but it holds no state dict")
    elif path.suffix.lower() == ".safetensors":
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file: {one_line(error)}") from None
    else:
        content = _unpickle(path)
    tensors, prefix = _backbone_tensors(content, path, model)
    if prefix.endswith("features.module."):
        return Weights(tensors, "MagFace")
    return Weights(tensors, "AdaFace" if "pytorch-lightning_version" in content else None)


# What a folder's weights are called, and how files of weights end under any name.
_FILES = ("model.safetensors", "model.pt", "best.pt", "pytorch_model.bin")
_SUFFIXES = {".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".tar"}


def _file(path: Path) -> Path:
    """The weights meant by a folder: its file of weights, or the folder itself when it is a sharded checkpoint."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_dir() or (path / ".metadata").exists():
        return path
    for name in _FILES:
        if (path / name).exists():
            return path / name
    text = f"{path} holds no {', '.join(_FILES[:-1])} or {_FILES[-1]}"
    if steps := sorted((path / "checkpoints").glob("step_*")):
        raise FileNotFoundError(f"{text}: has its training finished? Its newest checkpoint is {steps[-1]}")
    files = sorted(file for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix.lower() in _SUFFIXES)
    if files:
        text += f"; name the file that you mean: {_brief([str(file) for file in files])}"
    raise FileNotFoundError(text)


# What training scripts keep beside the weights: Lightning's callbacks and settings, scores, command lines.
_BYSTANDERS = ("pytorch_lightning.", "lightning.", "numpy.", "argparse.", "easydict.")


class _Bystander:
    """Stands for what a file names beside the tensors; whatever is done to it does nothing, and nothing is imported."""

    def __new__(cls, *arguments: Any) -> Any:
        # Subclasses of dict are made empty and filled then, which PyTorch does to its own kinds of dict only.
        return super().__new__(cls) if arguments else OrderedDict()

    def __setstate__(self, state: Any) -> None:
        pass


_REMEDY = (
    "Where you trust it, let the program that wrote it save the plain state dict: torch.save(model.state_dict(), ...)"
)


def _require_unchanged(path: Path) -> None:
    """Check the CRC-32 that every entry of a zip file has, which PyTorch does not look at.

    It is zero where who wrote the file has turned checksums off (`torch.serialization.set_crc32_options`).
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # the older format
            return
        try:
            archive = zipfile.ZipFile(file)
        except Exception:  # of no use to PyTorch either, which says why
            return
        for entry in archive.infolist():
            try:
                with archive.open(entry) as content:
                    while entry.CRC and content.read(1 << 20):
                        pass
            except OSError:
                raise
            except Exception as error:  # damaged headers raise many kinds
                raise UserError(
                    f"{path} is damaged: {entry.filename!r} in it has changed since it was written; copy it again"
                ) from error


def _unpickle(path: Path) -> Any:
    _require_unchanged(path)
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
            raise UserError(f"{path} is no file of weights that PyTorch or safetensors wrote") from None
        raise UserError(f"{path} is refused: reading it would run code ({named[1]}). {_REMEDY}") from None
    except Exception as error:  # damaged files raise many kinds
        if "weights_only" in str(error):  # PyTorch advises to run what is in the file
            raise UserError(f"{path} is TorchScript or of PyTorch's oldest format, no state dict. {_REMEDY}") from None
        raise UserError(f"{path} is no file of weights: {one_line(error)}") from None


def _backbone_tensors(content: Any, path: Path, model: nn.Module | None) -> tuple[dict[str, Tensor], str]:
    """The backbone's tensors under their published names, and what stood before these."""
    named = dict(_named_tensors(content))
    if not named:
        raise UserError(f"{path} holds no tensors of a backbone")
    own = list(model.state_dict()) if model else []
    prefixes = backbone_prefixes(named, own)
    if not prefixes:
        raise UserError(f"{path} holds tensors of no backbone that is known here: {_brief(list(named))}")
    if len(prefixes) > 1:
        networks = ", ".join(prefix or "the outermost" for prefix in prefixes)
        warnings.warn(f"{path} holds several networks ({networks}); {networks.split(', ')[0]} is read", stacklevel=2)
    prefix = prefixes[0]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
    tensors.pop("weight", None)  # TopoFR keeps the class centres in its backbone
    return {name: tensor for name, tensor in tensors.items() if "/" not in name}, prefix


def _named_tensors(content: Any, section: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries within dictionaries, each as ``section/section/name``."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield section + name, value
        elif isinstance(name, str):
            yield from _named_tensors(value, f"{section}{name}/")


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


def _guessed(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    try:
        return guess_architecture(tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


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
        text = "; ".join(f"{len(names)} {kind}: {_brief(names)}" for kind, names in problems.items() if names)
        raise UserError(f"{path} does not fit the model: {text}")
    model.load_state_dict(tensors, strict=False)


def _brief(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
