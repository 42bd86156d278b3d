"""Sharded training checkpoints (`torch.distributed.checkpoint`), read without trust in what they hold.

PyTorch's own reader unpickles the checkpoint's ``.metadata`` and its entries that are no tensors, either of which can
run anything. Here the former may name only the classes that belong there, the latter hold plain values only, and all
is read from plain files of the folder itself.
"""

import io
import json
import logging
import os
import pickle
import warnings
import zlib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from pipelines.common.errors import UserError, one_line

_BLOCK = 1 << 22  # bytes read at a time for a checksum

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


class _MetadataUnpickler(pickle._Unpickler):
    """Admits the classes of a checkpoint's metadata, and leaves these as they are.

    It is the unpickler in Python, whose steps can be replaced; nor does a number in a file make it reserve memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint's metadata")
        return super().find_class(module, name)

    stack: list[Any]

    def _build(self) -> None:
        if callable(self.stack[-2]) or isinstance(self.stack[-2], Enum):  # which last as long as the process
            raise pickle.UnpicklingError("its metadata changes a class")
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type]

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _build}  # type: ignore[dict-item]


class _Reader(dcp.FileSystemReader):
    """Reads a checkpoint in whose files nothing has changed, of which this rank looks at a share."""

    def __init__(self, folder: Path, share: slice) -> None:
        super().__init__(folder)
        self.folder, self.share = folder, share
        self.error: Exception | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            metadata = _metadata(self.folder)
            verify(self.folder, dict(list(stored_checksums(self.folder).items())[self.share]))
        except Exception as error:  # raised here, PyTorch would print its traceback and look for other metadata
            self.error, metadata = error, Metadata({})
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        if self.error:
            raise self.error
        super().set_up_storage_reader(metadata, *args, **kwargs)


def _metadata(folder: Path) -> Metadata:
    """What the checkpoint holds, and where: in plain files of the folder."""
    verify(folder, {name: entry for name, entry in stored_checksums(folder).items() if name == ".metadata"})
    metadata = _MetadataUnpickler(io.BytesIO((folder / ".metadata").read_bytes())).load()
    pieces = metadata.storage_data.values()
    for name in {piece.relative_path for piece in pieces}:
        if not _in_folder(name) or not (folder / name).is_file():
            raise UserError(f"{folder} is damaged: {name} is missing")
    if any(getattr(piece, "transform_descriptors", None) for piece in pieces):
        raise UserError(f"{folder} is refused: its pieces are compressed or otherwise changed")
    return metadata


class _Planner(dcp.DefaultLoadPlanner):
    """Takes plain values where no tensor is expected, and nothing else that is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        if isinstance(self.state_dict[name], Tensor):
            raise ValueError(f"{name} is no tensor")
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)  # PyTorch's own way, to which it goes on, runs code
        plain.seek(0)
        super().load_bytes(read_item, plain)


def load_sharded(folder: Path, state_dict: dict[str, Any], *, no_dist: bool = False, checked: bool = False) -> None:
    """Read a checkpoint into ``state_dict``, as `dcp.load` does: tensors in place, sharded as they are.

    Where its ``meta.json`` has checksums, all files are checked before anything is read, each rank a share, unless they
    have been ``checked`` just now. All ranks call and fail together, unless ``no_dist`` says that this process reads
    alone.

    Raises:
        UserError: naming the folder and what is wrong with it, in one line.
    """
    alone = no_dist or not dist.is_initialized()
    rank, size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    reader = _Reader(folder, slice(0) if checked else slice(rank, None, size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state_dict, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except dist.DistError:  # of the ranks, not of the checkpoint
        raise
    except CheckpointException as error:  # no Exception; it holds the errors of all ranks
        raise _told(folder, next(iter(error.failures.values()))[0]) from error
    except Exception as error:  # a damaged file can raise anything
        raise _told(folder, error) from error


def _told(folder: Path, error: BaseException) -> BaseException:
    """What a user is told where reading a checkpoint ends in ``error``."""
    if not isinstance(error, Exception):  # a signal came in the middle
        return error
    if isinstance(error, UserError):
        return UserError(str(error))
    text = one_line(error)
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:  # advice to run what is in the file
        text = "it holds something that is neither a tensor nor a plain value"
    return UserError(f"{folder} is no checkpoint that can be read: {text}")


def read_sharded(folder: Path, section: str = "backbone", *others: str) -> dict[str, Tensor]:
    """The tensors of one section of a checkpoint folder, whole, on the CPU, without the section's name.

    Args:
        others: what to read instead, the first that is there, where the folder has no such section.

    Raises:
        UserError: when the folder is damaged, holds no such section, or holds anything that would have to be run.
    """
    try:
        stored = _metadata(folder).state_dict_metadata
        there = {name.partition(".")[0] for name in stored}
        section = next((each for each in (section, *others) if each in there), (section, *others)[-1])
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if name.startswith(f"{section}.") and isinstance(entry, TensorStorageMetadata)
        }
    except Exception as error:
        raise _told(folder, error) from error
    if not tensors:
        raise UserError(f"{folder} holds no {section}")
    load_sharded(folder, tensors, no_dist=True)
    return {name.removeprefix(f"{section}."): tensor for name, tensor in tensors.items()}


def checksums(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Of each named file in ``folder`` its size in bytes and its CRC-32: what ``meta.json`` keeps as ``files``."""
    return {name: _checksum(folder / name) for name in names}


def stored_checksums(folder: Path) -> dict[str, list[int]]:
    """The ``files`` of a checkpoint's ``meta.json``: name to [size, CRC-32]; none for checkpoints written without.

    Raises:
        UserError: when ``meta.json`` is damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        files = meta.get("files", {})
        sound = all(
            _in_folder(name) and [type(number) for number in entry] == [int, int] for name, entry in files.items()
        )
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError):  # no JSON, or JSON of another form
        sound = False
    if not sound:
        raise UserError(f"{folder} is damaged: meta.json is not as it was written")
    return files


def verify(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Check files of a checkpoint against their sizes and checksums, or a rank's share of `stored_checksums`.

    Raises:
        UserError: naming the first file that is missing or has changed.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} is damaged: {name} is missing")
        if path.stat().st_size != expected[0] or _checksum(path) != list(expected):
            raise UserError(f"{folder} is damaged: {name} has changed since it was written")


def _checksum(path: Path) -> list[int]:
    size = checksum = 0
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size += count
            checksum = zlib.crc32(block[:count], checksum)
    return [size, checksum]


def _in_folder(name: object) -> bool:
    """Whether this is the name of a file that lies in the folder itself."""
    return isinstance(name, str) and os.path.basename(name) == name not in ("", ".", "..")  # noqa: PTH119


logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
