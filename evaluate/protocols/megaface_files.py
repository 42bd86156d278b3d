"""The files around MegaFace: image lists, noise lists, and the development kit's one-feature-a-file format.

The lists name an image by its path, a line each or as the kit's JSON; what counts is the path's end, ``identity/name``
for FaceScrub and ``a/b/name`` for MegaFace's distractors. A feature lies at the same path with ``_<algorithm>.bin``
behind the name: four little-endian int32 (rows, columns, bytes of a row, OpenCV type), then the float32 of a column or
a row: (d, 1, 4, 5) or (1, d, 4d, 5).
"""

import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from evaluate.protocols.embeddings import finite
from pipelines.common.errors import UserError
from pipelines.common.files import replacing

_HEADER = struct.Struct("<4i")
_ELEMENT_BYTES, _OPENCV_FLOAT = 4, 5


def read_list(path: Path, parts: int) -> list[str]:
    """The last ``parts`` components of each path in an image list, text or JSON ``{"path": [...]}``."""
    text = _text(path)
    if text.startswith("{"):
        try:
            paths = json.loads(text)["path"]
            names = [_tail(name, parts) for name in paths]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path} is JSON, but not {{"path": [names]}} as in the kit\'s templatelists') from None
    else:
        names = [_tail(line.strip(), parts) for line in text.splitlines() if line.strip()]
    short = [name for name in names if name.count("/") != parts - 1]
    if short or not names:
        raise UserError(f"{path} must list image paths of {parts} components or more, found {short[:1] or 'nothing'}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path} lists an image twice: {name}")
        seen.add(name)
    return names


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names may be in any encoding


def _tail(name: str, parts: int) -> str:
    return "/".join(name.split("/")[-parts:])


def read_noises(path: Path | None) -> set[str]:
    """The images of a published noise list: a name a line, or its number, a tab and the name; # begins a comment."""
    if path is None:
        return set()
    lines = (line.strip() for line in _text(path).splitlines())
    return {line.split("\t")[-1] for line in lines if line and not line.startswith("#")}


def find_noises(names: Sequence[str], noises: Iterable[str]) -> np.ndarray:
    """Rows int64 (k,) of the images ``names`` (n,) that ``noises`` list, by file name or with folders before it.

    Raises ``ValueError`` for a noise that fits several images.
    """
    parts = names[0].count("/") + 1
    wanted = {_tail(noise, parts) for noise in noises}
    depths = {noise.count("/") + 1 for noise in wanted}
    rows = defaultdict(list)
    for row, name in enumerate(names):
        for depth in depths:
            if (tail := _tail(name, depth)) in wanted:
                rows[tail].append(row)
    for noise, found in rows.items():
        if len(found) > 1:
            raise UserError(
                f"the noise {noise} fits {len(found)} images, {names[found[0]]} and others: list it with its folder"
            )
    return np.unique(np.array([found[0] for found in rows.values()], np.int64))


def feature_path(folder: Path, name: str, algorithm: str) -> Path:
    """``algorithm`` may be the kit's suffix as well: x, _x and _x.bin are one, .bin alone is none."""
    stem = algorithm.removesuffix(".bin").removeprefix("_")
    return folder / (f"{name}_{stem}.bin" if stem else f"{name}.bin")


def write_feature(path: Path, feature: np.ndarray) -> None:
    """Write a float32 feature (d,)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:  # a million of them
        temporary.write_bytes(
            _HEADER.pack(len(feature), 1, _ELEMENT_BYTES, _OPENCV_FLOAT) + feature.astype("<f4").tobytes()
        )


def read_feature(path: Path) -> np.ndarray:
    """Read a float32 feature (d,)."""
    data = path.read_bytes()
    rows, columns, row_bytes, kind = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (0, 0, 0, 0)
    count = max(rows, columns)
    if (
        min(rows, columns) != 1
        or kind != _OPENCV_FLOAT
        or row_bytes not in (_ELEMENT_BYTES, _ELEMENT_BYTES * columns)  # some write the former for a row, too
        or len(data) != _HEADER.size + _ELEMENT_BYTES * count
    ):
        raise UserError(f"{path} is no MegaFace feature file")
    return np.frombuffer(data, "<f4", offset=_HEADER.size)


def read_features(folder: Path, names: Sequence[str], algorithm: str) -> np.ndarray:
    """Features (n, d) of the images ``names`` (n,). Raises ``ValueError`` for features that are not finite."""
    path = feature_path(folder, names[0], algorithm)
    if not path.exists():
        raise FileNotFoundError(f"there is no feature file {path}; --features and --algorithm say where they lie")
    first = read_feature(path)
    features = np.empty((len(names), len(first)), np.float32)
    for row, name in enumerate(names):
        path = feature_path(folder, name, algorithm)
        feature = read_feature(path)
        if len(feature) != len(first):
            raise UserError(f"{path} has {len(feature)} dimensions, the first feature has {len(first)}")
        features[row] = feature
    return finite(features, f"the features in {folder}", names.__getitem__)
