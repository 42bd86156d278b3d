"""The backbone's tensors out of a sharded training checkpoint (`torch.distributed.checkpoint`), read without trust.

PyTorch's own reader unpickles the checkpoint's ``.metadata``; this one admits only the classes that belong there.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from pipelines.common.errors import UserError

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint's metadata")
        return super().find_class(module, name)


class SafeReader(dcp.FileSystemReader):
    """Reads a checkpoint whose ``.metadata`` names nothing but its own classes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        data = (Path(self.path) / ".metadata").read_bytes()
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_sharded(folder: Path, section: str = "backbone") -> dict[str, Tensor]:
    """The tensors of one section of a checkpoint folder, whole, on the CPU, without the section's name.

    Raises:
        ValueError: when the folder is damaged, holds no such section, or holds anything that would have to be run.
    """
    try:
        reader = SafeReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if name.startswith(f"{section}.") and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{folder} is no checkpoint that can be read: {error}") from None
    if not tensors:
        raise UserError(f"{folder} holds no {section}")
    return {name.removeprefix(f"{section}."): tensor for name, tensor in tensors.items()}
