"""WebDataset shards: tar files with ``key.jpg`` and ``key.cls`` for each image, read by offset.

The label of an image is the text of its ``.cls``; without one, the folder in its key is its identity. The offsets are
found once and cached beside each shard (``<shard>.index.npz``).
"""

import contextlib
import os
import tarfile
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.files import replacing
from pipelines.formats import IMAGE_SUFFIXES
from pipelines.identities import number_identities, read_identities

_CACHE_VERSION = 1
_MAPPED = 256  # shards that are memory-mapped at a time: each takes a file descriptor


class _Index(NamedTuple):
    offsets: np.ndarray  # int64 (n,)
    lengths: np.ndarray  # int64 (n,)
    names: np.ndarray  # unicode (n,), labels or identities


class ShardSource:
    """The images of tar files, in the order of the files and within them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        indices = [_read_index(path) for path in self._paths]
        self._ends = np.cumsum([len(index.offsets) for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._lengths = np.concatenate([index.lengths for index in indices])
        names = [name for index in indices for name in index.names.tolist()]
        if not names:
            raise ValueError(f"{self._paths[0].parent}: the shards hold no images ({', '.join(IMAGE_SUFFIXES)})")
        self._identities, self._labels = number_identities(names, read_identities(self._paths[0].parent))
        self.num_classes = self._identities.count
        self._map = lru_cache(_MAPPED)(lambda shard: np.asarray(np.memmap(self._paths[shard], np.uint8, "r")))

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        encoded = []
        for index, shard in zip(indices, np.searchsorted(self._ends, indices, side="right").tolist()):
            offset, length = self._offsets[index], self._lengths[index]
            if not length:
                raise ValueError(f"{self._paths[shard].parent / self.describe(index)} is empty")
            encoded.append(self._map(shard)[offset : offset + length])
        return encoded, self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._paths[shard].name} image at byte {self._offsets[index]}, label {self._labels[index]}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: the kernel reads ahead within a mapped file."""


def _read_index(path: Path) -> _Index:
    stamp = np.array([_CACHE_VERSION, path.stat().st_size, path.stat().st_mtime_ns])
    cache = path.with_name(f"{path.name}.index.npz")
    try:
        with np.load(cache, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], stamp):
                return _Index(*(saved[name] for name in _Index._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none, or one that is damaged: it is made anew
    index = _scan(path)
    if path.parent.stat().st_mode & 0o222:  # data sets often lie in folders that are read-only
        with contextlib.suppress(OSError), replacing(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, stamp=stamp, **index._asdict())
    return index


def _scan(path: Path) -> _Index:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if not member.isreg() or not stem:
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(f"{path} ends within {member.name}: copy the shard again")
                key = f"{folder}/{stem}"
                if f".{suffix.lower()}".endswith(IMAGE_SUFFIXES):
                    images[key] = member.offset_data, member.size
                elif suffix == "cls":
                    labels[key] = archive.extractfile(member).read(100).decode(errors="replace").strip()
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no sound, uncompressed tar file ({error})") from None
    names = [labels.get(key) or key.rpartition("/")[0].removeprefix("./") for key in images]
    if not all(names):
        key = list(images)[names.index("")]
        raise ValueError(f"{path}: image '{key[1:]}' has neither a .cls with its label nor a folder in its name")
    places = np.array(list(images.values()), np.int64).reshape(-1, 2)
    return _Index(places[:, 0].copy(), places[:, 1].copy(), np.array(names, np.str_))
