"""WebDataset shards: tar files with ``key.jpg`` and ``key.cls`` for each image, read by offset.

The label of an image is the text of its ``.cls``; where there is none for any image, the folders in their names are the
identities. A name's suffix is what follows its last dot, so ``frame.0001.jpg`` and ``frame.0002.jpg`` are two images,
as are ``12.jpg`` and ``12.png``. Of members with the very same name the last counts, as for tar. The offsets are found
once and cached beside each shard (``<shard>.index.npz``).
"""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import IMAGE_SUFFIXES
from pipelines.common.log import get_logger
from pipelines.sources.identities import label_text, number_names, number_texts, read_identities
from pipelines.sources.index_cache import cached
from pipelines.sources.left_out import LeftOut
from pipelines.sources.range_source import RangeSource

logger = get_logger(__name__)

_CACHE_VERSION = 3
_LONGEST = 100  # bytes of a label
_NEITHER = "neither a .cls with its label nor a folder in its name"


class _Index(NamedTuple):
    offsets: np.ndarray  # int64 (n,)
    lengths: np.ndarray  # int64 (n,)
    names: np.ndarray  # unicode (n,), labels or folders
    labelled: bool  # whether they are labels
    remarks: np.ndarray  # unicode (r,), what there is to say of the file


class ShardSource(RangeSource):
    """The images of tar files, in the order of the files and within them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        indices = [_read_index(path) for path in paths]
        for path, index in zip(paths, indices):
            for remark in index.remarks.tolist():
                logger.warning("%s: %s", path, remark)
        names = [name for index in indices for name in index.names.tolist()]
        folder = paths[0].parent
        if not names:
            raise UserError(f"{folder}: the shards hold no images ({', '.join(IMAGE_SUFFIXES)})")
        filled = [(path, index.labelled) for path, index in zip(paths, indices) if len(index.names)]
        labelled = _all_labelled(filled)
        numbered = number_texts(names, read_identities(folder), folder) if labelled else number_names(names)
        offsets, lengths = [index.offsets for index in indices], [index.lengths for index in indices]
        super().__init__(*numbered, paths, offsets, lengths)

    def place(self, index: int) -> str:
        return f"{self._paths[self._files(index)].name} image at byte {self._begins[index]}"


def _read_index(path: Path) -> _Index:
    cache = path.with_name(f"{path.name}.index.npz")
    return cached(cache, [path], _CACHE_VERSION, _Index, lambda: _scan(path))


def _all_labelled(shards: list[tuple[Path, bool]]) -> bool:
    """Whether all, not none, of the shards have labels in ``.cls``. Raises ``ValueError`` if some do."""
    with_, without = ([path for path, labelled in shards if labelled is wanted] for wanted in (True, False))
    if with_ and without:
        raise UserError(f"{with_[0]} has labels (.cls), {without[0]} has none: give shards of one kind")
    return bool(with_)


def _scan(path: Path) -> _Index:
    images: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    left_out, again = LeftOut(), 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                stem, suffix = os.path.splitext(name)  # noqa: PTH122  a str: there may be millions
                if member.isdir() or name.rpartition("/")[2].startswith("."):
                    continue
                if not member.isreg():
                    left_out.add(name, "link")
                    continue
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} is cut short, it ends within {member.name}: copy the shard again")
                if name.lower().endswith(IMAGE_SUFFIXES):
                    again += name in images
                    images[name] = member.offset_data, member.size
                elif suffix.lower() == ".cls":
                    if member.size > _LONGEST:
                        raise UserError(f"{path}: {member.name} is no label: it has {member.size} bytes")
                    content = archive.extractfile(member)
                    assert content is not None  # as it is a regular file
                    texts[stem] = content.read().decode(errors="surrogateescape")
                else:
                    left_out.add(name)
            end = archive.offset
    except tarfile.TarError as error:
        raise UserError(f"{path} is no sound, uncompressed tar file ({error})") from None
    _check_end(path, end)
    remarks = [f"{left_out} are left out"] if left_out else []
    if again:
        remarks.append(f"{again} images are replaced by later ones of the same name")
    names, labelled = _names(path, list(images), texts)
    places = np.array(list(images.values()), np.int64).reshape(-1, 2)
    return _Index(
        places[:, 0].copy(),
        places[:, 1].copy(),
        np.array(names, np.str_),
        labelled,
        np.array(remarks, np.str_),
    )


def _check_end(path: Path, end: int) -> None:
    """A tar file ends with blocks of zeros. Python's reader stops at any other end too, and says nothing."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise UserError(f"{path} is cut short, the mark of its end is missing: copy or write the shard again")
    if any(block):
        raise UserError(f"{path} is damaged at byte {end}: copy or write the shard again")


def _names(path: Path, images: list[str], texts: dict[str, str]) -> tuple[list[str], bool]:
    """The labels of the images ``folder/name.suffix``, or else their folders; and which of the two they are.

    ``texts``: of each ``.cls``, by its name without that suffix. It belongs to the image of that name, and to those
    without one of their own whose name it is up to the first dot, WebDataset's key of a sample.
    """
    stems = [os.path.splitext(image)[0] for image in images]  # noqa: PTH122
    of = [texts.get(stem, texts.get(_key(stem))) for stem in stems] if texts else []
    labelled = any(text is not None for text in of)
    perhaps = of if labelled else [image.rpartition("/")[0] or None for image in images]
    names = [name for name in perhaps if name is not None]
    if len(names) < len(perhaps):
        reason = "no .cls with its label, though others have" if labelled else _NEITHER
        raise UserError(f"{path}: image '{stems[perhaps.index(None)]}' has {reason}")
    return (_texts(path, stems, names) if labelled else names), labelled


def _texts(path: Path, stems: list[str], labels: list[str]) -> list[str]:
    texts = []
    for stem, label in zip(stems, labels):
        try:
            texts.append(label_text(label))
        except ValueError as error:
            raise UserError(f"{path}: image '{stem}': {error}") from None
    return texts


def _key(stem: str) -> str:
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.partition(".")[0]
