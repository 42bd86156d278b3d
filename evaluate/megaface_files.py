"""The files around MegaFace: image lists, noise lists, and the development kit's one-feature-a-file format.

The lists name an image by its path; what counts is its end, ``identity/name`` for FaceScrub and ``a/b/name`` for
MegaFace's distractors. A feature lies at the same path with ``_<algorithm>.bin`` behind the name: four little-endian
int32 (rows, columns, bytes of an element, OpenCV type: d, 1, 4, 5), then d float32.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.files import replacing

_HEADER = struct.Struct("<4i")
_ELEMENT_BYTES, _OPENCV_FLOAT = 4, 5


def read_list(path: Path, parts: int) -> list[str]:
    """The last ``parts`` components of each path in an image list; empty lines are skipped."""
    names = ["/".join(line.strip().split("/")[-parts:]) for line in path.read_text().splitlines() if line.strip()]
    short = [name for name in names if name.count("/") != parts - 1]
    if short or not names:
        raise ValueError(f"{path} must list image paths of {parts} components or more, found {short[:1] or 'nothing'}")
    if len(set(names)) != len(names):
        raise ValueError(f"{path} lists an image twice")
    return names


def read_noises(path: Path | None) -> set[str]:
    """The images of a published noise list: a name a line, or its number, a tab and the name; # begins a comment."""
    if path is None:
        return set()
    lines = (line.strip() for line in path.read_text().splitlines())
    return {line.split("\t")[-1] for line in lines if line and not line.startswith("#")}


def feature_path(folder: Path, name: str, algorithm: str) -> Path:
    return folder / f"{name}_{algorithm}.bin"


def write_feature(path: Path, feature: np.ndarray) -> None:
    """Write a float32 feature (d,)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(
            _HEADER.pack(len(feature), 1, _ELEMENT_BYTES, _OPENCV_FLOAT) + feature.astype("<f4").tobytes()
        )


def read_feature(path: Path) -> np.ndarray:
    """Read a float32 feature (d,)."""
    data = path.read_bytes()
    rows, columns, size, kind = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (0, 0, 0, 0)
    count = rows * columns
    if (size, kind) != (_ELEMENT_BYTES, _OPENCV_FLOAT) or count < 1 or len(data) != _HEADER.size + 4 * count:
        raise ValueError(f"{path} is no MegaFace feature file")
    return np.frombuffer(data, "<f4", offset=_HEADER.size)


def read_features(folder: Path, names: Sequence[str], algorithm: str) -> np.ndarray:
    """Features (n, d) of the images ``names`` (n,)."""
    first = read_feature(feature_path(folder, names[0], algorithm))
    features = np.empty((len(names), len(first)), np.float32)
    for row, name in enumerate(names):
        path = feature_path(folder, name, algorithm)
        feature = read_feature(path)
        if len(feature) != len(first):
            raise ValueError(f"{path} has {len(feature)} dimensions, the first feature has {len(first)}")
        features[row] = feature
    return features
