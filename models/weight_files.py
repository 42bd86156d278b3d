"""What is in a file of weights: dictionaries and tensors, read without running anything from it."""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.lora import merged
from pipelines.common.errors import UserError, brief, one_line


def read_file(path: Path) -> Any:
    """The dictionaries and tensors in a file of weights, or in a sharded checkpoint's folder.

    Raises:
        ValueError: it is damaged, no such file, or could be read only by running code that it names.
    """
    if path.is_dir():
        from models.sharded import read_sharded  # torch.distributed.checkpoint takes a second to import

        return merged(read_sharded(path, "ema", "backbone"))  # averaged weights where there are some
    if path.suffix.lower() == ".onnx":
        raise UserError(f"{path} is an ONNX file: the commands of evaluate run it, but it holds no state dict")
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file: {one_line(error)}") from None
    return _unpickle(path)


def named_tensors(content: Any, section: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries within dictionaries, each as ``section/section/name``, quantised ones dequantised."""
    for name, value in _unpacked(content).items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield section + name, value.dequantize() if value.is_quantized else value
        elif isinstance(name, str):
            yield from named_tensors(value, f"{section}{name}/")


# How linear layers under dynamic quantisation (`torch.ao.nn.quantized.dynamic.Linear`) name the pair of their weight in
# 8 bits and their bias. Scale and zero point beside it are of an output that is not quantised.
_PACKED = "._packed_params._packed_params"


def _unpacked(content: dict[Any, Any]) -> dict[Any, Any]:
    """``content`` with weight and bias of quantised linear layers under the names that they had before."""
    found = dict(content)
    for key in [key for key in content if isinstance(key, str) and key.endswith(_PACKED)]:
        layer, packed = key.removesuffix(_PACKED), found.pop(key)
        for name in ("scale", "zero_point", "_packed_params.dtype"):
            found.pop(f"{layer}.{name}", None)
        if isinstance(packed, tuple):
            found |= {
                f"{layer}.{name}": tensor for name, tensor in zip(("weight", "bias"), packed) if tensor is not None
            }
    return found


# What a folder's weights are called, and how files of weights end under any name.
_FILES = ("model.safetensors", "model.pt", "best.pt", "pytorch_model.bin")
_SUFFIXES = {".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".tar"}


def weight_file(path: Path) -> Path:
    """The weights meant by a folder: its file of weights, or the folder itself when it is a sharded checkpoint."""
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_dir() or (path / ".metadata").exists():
        return path
    for name in _FILES:
        if (path / name).exists():
            return path / name
    text = f"{path} holds no {', '.join(_FILES[:-1])} or {_FILES[-1]}"
    # Those that are whole: `train.step_folders` says how they are called.
    if steps := sorted((path / "checkpoints").glob(f"step_{9 * '[0-9]'}/meta.json")):
        raise FileNotFoundError(f"{text}: has its training finished? Its newest checkpoint is {steps[-1].parent}")
    files = sorted(file for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix.lower() in _SUFFIXES)
    if files:
        text += f"; name the file that you mean: {brief([str(file) for file in files])}"
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
        with torch.serialization.safe_globals([(_Bystander, name) for name in bystanders]), warnings.catch_warnings():
            # Of PyTorch's own quantised tensors and their storages.
            warnings.filterwarnings("ignore", r"TypedStorage is deprecated|torch\.quantize_per_tensor")
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
