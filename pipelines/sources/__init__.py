"""Where images come from: ``open_source`` finds the reader of a data set."""

import glob
import logging
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.sources.folder import FolderSource
from pipelines.sources.lists import open_list
from pipelines.sources.lmdbs import LmdbSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.rec import RecordSource
from pipelines.sources.recordio import LABEL_LIMIT
from pipelines.sources.source import Source
from pipelines.sources.webdataset import ShardSource

logger = logging.getLogger(__name__)


_SPARE = 100  # classes without an image that are worth no word
_KINDS = "train.rec, identity/*.jpg, *.tar, *.parquet or data.mdb"


def open_source(path: str | Path) -> Source:
    """The images at ``path``: a folder with one of _KINDS, a file of such a kind, a list (.lst, .txt), or a glob.

    Warns of class counts that can hardly be meant, and raises ``ValueError`` for one that no machine would hold.
    """
    source = _open(Path(path))
    classes, images = source.num_classes, len(source)
    if classes > LABEL_LIMIT + images:
        raise UserError(f"{path} announces {classes} classes for {images} images: wrong labels, or a wrong 'property'?")
    if classes > 2 * images + _SPARE:
        logger.warning(
            "%s: %d classes for %d images: wrong labels, or 'property'? 'prepare convert' keeps the classes in use",
            *(path, classes, images),
        )
    if classes == 1 < images and not isinstance(source, FolderSource):  # of a folder it is plain to see
        logger.warning("%s: all %d images are of one identity, '%s'", path, images, source.identity(0))
    return source


def _open(path: Path) -> Source:
    if path.is_file():
        return _open_files([path])
    if not path.is_dir():
        if matches := sorted(map(Path, glob.glob(str(path)))):  # noqa: PTH207  Path.glob takes no absolute pattern
            return _open_files(matches)
        raise FileNotFoundError(f"there is no data set at {path}")
    if (path / "train.rec").is_file():
        return RecordSource(path / "train.rec")
    if records := sorted(path.glob("*.rec")):
        raise UserError(f"{path} has no train.rec; name the file that is meant: {', '.join(map(str, records[:5]))}")
    if (path / "data.mdb").is_file():
        return LmdbSource(path)
    for pattern in ("*.tar", "*.parquet"):
        if files := sorted(path.glob(pattern)):
            return _open_files(files)
    return FolderSource(path)


def _open_files(paths: list[Path]) -> Source:
    """The images of one file, or of several shards of a kind."""
    kinds = {path.suffix for path in paths}
    if kinds == {".tar"}:
        return ShardSource(paths)
    if kinds == {".parquet"}:
        return ParquetSource(paths)
    if len(paths) == 1:
        path = paths[0]
        if path.suffix == ".rec":
            return RecordSource(path)
        if path.suffix in (".lst", ".txt"):
            return open_list(path)
        if path.suffix in (".mdb", ".lmdb"):
            return LmdbSource(path)
    raise UserError(f"{paths[0]} is no data set: give a .rec file, a list (.lst, .txt), or a folder with {_KINDS}")


__all__ = ["Source", "open_source"]
