"""Embeddings of all images of a source on disk, by index: made once by all ranks, then read row by row."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from evaluate.features.network import Network
from evaluate.features.pieces import Piece, in_pieces, make_missing, rows_a_file, split
from evaluate.features.ranks import World
from evaluate.features.readable import embed_readable
from evaluate.protocols.embeddings import finite
from pipelines.common.errors import UserError
from pipelines.common.files import save_array
from pipelines.common.progress import with_progress
from pipelines.loading.landmarks import Landmarks, template_landmarks
from pipelines.sources.rows import RowFile
from pipelines.sources.source import Source

_BATCH = 128  # images that are embedded at a time
_PROBES = 64  # images whose bytes tell a data set from another with the same labels


class EmbeddingStore:
    """The folder of the embeddings of ``count`` images: ``000000.npy`` … hold float16 (n, 2, d) of n in a row.

    They have length 1: the original's, then the mirrored image's. NaN stands for images that could not be read. Files
    appear whole, so one that is there is done; `fill` makes those that are missing.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.rows = rows_a_file(count)
        self._files: dict[int, RowFile] = {}

    @property
    def dimension(self) -> int:
        """Numbers of an embedding, once there is one."""
        return self._file(0).shape[2]

    def fill(
        self,
        network: Network,
        source: Source,
        world: World,
        *,
        threads: int,
        autocast: torch.dtype | None,
        max_bad_fraction: float,
        landmarks: Landmarks | None = None,
    ) -> None:
        """Embed the images of the files that are missing, each rank a share; all ranks call.

        Args:
            threads: of the decoding.
            autocast: the dtype to compute in.
            max_bad_fraction: of the images that cannot be read or decoded; more are a ``ValueError``.
            landmarks: of the images, for a network that wants some; by default it takes the template's.

        Raises:
            UserError: an embedding is not finite.
        """

        def make(share: list[Piece]) -> None:
            parts = [part for _, part in share]
            features, bad_images = embed_readable(
                network.model,
                source,
                [batch for part in parts for batch in np.split(part, range(_BATCH, len(part), _BATCH))],
                image_size=network.input_size,
                device=world.device,
                threads=threads,
                autocast=autocast,
                max_bad_fraction=max_bad_fraction,
                landmarks=landmarks,
            )
            lengths = list(map(len, parts))
            if world.main:
                features = with_progress(features, "images of this rank", sum(lengths))
            for (path, part), piece in zip(share, in_pieces(features, lengths), strict=True):
                bad = np.array([int(index) in bad_images for index in part])
                with np.errstate(invalid="ignore"):  # 0 / 0 is told as what it is, not finite
                    piece /= np.linalg.norm(piece, axis=2, keepdims=True)
                finite(piece[~bad], "the network's embeddings", _names(source, part[~bad]))
                piece[bad] = np.nan
                save_array(path, piece.astype("<f2"))

        self.folder.mkdir(parents=True, exist_ok=True)
        make_missing(split(self.count, self.rows, self.folder), world, make)

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """The embeddings float32 (b, d) of images ``indices`` int64 (b,), or of the mirror images where ``mirrored``,
        bool (b,), says so. Raises ``UserError`` where one could not be read when they were made."""
        places = zip(*np.divmod(indices, self.rows), mirrored.astype(np.int64))
        rows = [self._file(int(number)).read(int(row), int(view)) for number, row, view in places]
        embeddings = np.stack(rows).astype(np.float32)
        sound = np.isfinite(embeddings).all(axis=1)
        if not sound.all():
            index = int(indices[~sound][0])
            raise UserError(
                f"{self._path(index // self.rows)} has no embedding of image {index}, which could not be read when the "
                "file was made; remove it, and it is made anew"
            )
        return embeddings

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def _file(self, number: int) -> RowFile:
        if number not in self._files:
            rows = min(self.rows, self.count - number * self.rows)
            self._files[number] = _open(self._path(number), rows)
        return self._files[number]


def _open(path: Path, rows: int) -> RowFile:
    """A file of a store, of so many images."""
    try:
        file = RowFile(path)
        sound = file.shape[:2] == (rows, 2) and len(file.shape) == 3 and file.dtype == np.dtype("<f2")
    except ValueError:
        sound = False
    if not (sound and file.in_rows and file.whole):
        raise UserError(f"{path} is damaged, or no store of embeddings: remove it, and it is made anew")
    return file


def store_key(
    network: Network, source: Source, landmarks: Landmarks | None = None, autocast: torch.dtype | None = None
) -> str:
    """What embeddings depend on, as 16 hexadecimal digits: the network's weights and input, the dtype it computes in,
    the images' number and labels, and the bytes of some of them, with their ``landmarks`` where these are others than
    the template's."""
    digest = hashlib.sha256(f"{network.digest()} {autocast} {len(source)} {source.fingerprint()}".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(np.int64)):
        some = np.array([index])
        try:
            digest.update(source.read(some)[0][0].tobytes())
        except (ValueError, OSError):
            digest.update(b"unreadable")
        if landmarks and not np.array_equal(places := landmarks(some), template_landmarks(some)):
            digest.update(places.tobytes())
    return digest.hexdigest()[:16]


def _names(source: Source, indices: np.ndarray) -> Callable[[int], str]:
    return lambda row: source.describe(int(indices[row]))
