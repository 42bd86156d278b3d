"""What users say of a set's images and people beside its data: qualities, names, groups."""

from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import load_array


def unpacked(path: Path) -> Path:
    """``lfw.bin`` of ``lfw.bin.xz``, by whose name the files beside it are called; any other set's path as it is."""
    return path.with_suffix("") if path.name.endswith(".bin.xz") else path


def read_quality(path: Path, images: int) -> np.ndarray:
    """A number an image, float64 (images,), from a ``.npy``; the higher the better."""
    values = load_array(path)
    if values.dtype.kind not in "fiu" or values.shape != (images,):
        raise UserError(f"{path} must be a .npy file of a number an image, ({images},), in the images' order")
    if not np.isfinite(values).all():
        raise UserError(f"{path}: the quality of image {np.flatnonzero(~np.isfinite(values))[0]} is not finite")
    return values.astype(np.float64)


def read_people(path: Path, images: int) -> list[str]:
    """Whom each image shows, a line an image."""
    names = [line.strip() for line in _text(path).splitlines()]
    if len(names) != images or not all(names):
        raise UserError(f"{path} must name a person in each of {images} lines, one an image; it has {len(names)}")
    return names


def read_groups(path: Path) -> dict[str, str]:
    """The group of each person: lines of a person and a group with a tab or a comma between."""
    groups: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        person, _, group = (part.strip() for part in line.rpartition("\t" if "\t" in line else ","))
        if not person or not group:
            raise UserError(f"{path} line {number} must hold a person and a group, with a tab or a comma between")
        if groups.setdefault(person, group) != group:
            raise UserError(f"{path} line {number}: {person} is in two groups, {groups[person]} and {group}")
    if not groups:
        raise UserError(f"{path} names nobody: it must hold a person and a group a line, with a tab or a comma between")
    return groups


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8") from None
