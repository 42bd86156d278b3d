"""Where images come from: ``open_source`` finds the reader of a data set in the table ``READERS``.

``open_sources`` takes several data sets as one, and corrections of labels.
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names
from pipelines.common.log import get_logger
from pipelines.sources.arrow import ArrowSource, saved_files
from pipelines.sources.changes import ChangedSource, read_changes
from pipelines.sources.folder import FolderSource
from pipelines.sources.joined import JoinedSource
from pipelines.sources.lists import open_list
from pipelines.sources.lmdbs import LmdbSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.rec import RecordSource
from pipelines.sources.recordio import LABEL_LIMIT
from pipelines.sources.source import Source
from pipelines.sources.webdataset import ShardSource

logger = get_logger(__name__)

Reader = Callable[[list[Path]], Source]  # gets files of one suffix, in order: shards, where there are several


def _of_one(read: Callable[[Path], Source]) -> Reader:
    """The reader of a format that has no shards."""

    def reader(paths: list[Path]) -> Source:
        if len(paths) > 1:
            raise UserError(f"{paths[0]} is one of {len(paths)} {paths[0].suffix} files: name the one that is meant")
        return read(paths[0])

    return reader


READERS: dict[str, Reader] = {
    ".rec": _of_one(RecordSource),
    ".lst": _of_one(open_list),
    ".txt": _of_one(open_list),
    ".mdb": _of_one(LmdbSource),
    ".lmdb": _of_one(LmdbSource),
    ".tar": ShardSource,
    ".parquet": ParquetSource,
    ".arrow": ArrowSource,
}
# In a folder, files with these suffixes do not tell what it is: a list lies beside images, lock.mdb beside data.mdb.
_BY_NAME_ONLY = frozenset((".rec", ".lst", ".txt", ".mdb", ".lmdb"))
_SHARDS = frozenset((".tar", ".parquet", ".arrow"))
_SPARE = 100  # classes without an image that nobody is warned of, however few images there are


def open_source(path: str | Path) -> Source:
    """The images at ``path``: a file of a kind in READERS, a glob of shards, or a folder.

    A folder holds train.rec, data.mdb, what Hugging Face's ``save_to_disk`` writes, shards (.tar, .parquet, .arrow), or
    else images as identity/*.jpg.

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


def open_sources(paths: Sequence[str | Path], changes: Sequence[Path] = ()) -> Source:
    """The data sets at ``paths`` as one, with the ``changes`` of labels in files.

    A file of changes is for one of the sets or for all of them together, which its first line tells.
    """
    shards = [path for path in map(Path, paths) if path.suffix in _SHARDS and path.is_file()]
    if len({(path.parent, path.suffix) for path in shards}) < len(shards):
        raise UserError(f"{shards[0]} and others beside it are shards of one set: name their folder, or quote the glob")
    return as_one({name: open_source(path) for name, path in zip(distinct_names(paths), paths)}, changes)


def as_one(sources: Mapping[str, Source], changes: Sequence[Path] = ()) -> Source:
    """Data sets by name as one, see ``open_sources``."""
    joined = JoinedSource(sources)
    several = []
    for path in changes:
        found = read_changes(path)
        if not found.fits(joined):
            parts = [name for name, source in sources.items() if found.fits(source)]
            if len(parts) != 1:
                which = (
                    f"fits {' and '.join(parts)} alike: change one of them before"
                    if parts
                    else (f"was made for other data, or another version of it, than {', '.join(sources)}")
                )
                raise UserError(f"{path} {which}")
            found = joined.moved(parts[0], found)
        several.append(found)
    source = joined if len(sources) > 1 else next(iter(sources.values()))
    return ChangedSource(source, several) if several else source


def _open(path: Path) -> Source:
    if path.is_file():
        return _open_files([path])
    if not path.is_dir():
        if matches := sorted(map(Path, glob.glob(str(path)))):  # noqa: PTH207  Path.glob takes no absolute pattern
            return _open_files(matches)
        raise FileNotFoundError(f"there is no data set at {path}")
    if (path / "train.rec").is_file():
        return _open_files([path / "train.rec"])
    if records := sorted(path.glob(_visible(".rec"))):
        raise UserError(f"{path} has no train.rec; name the file that is meant: {', '.join(map(str, records[:5]))}")
    if (path / "data.mdb").is_file():
        return _open_files([path / "data.mdb"])
    if files := saved_files(path):
        return _open_files(files)
    for suffix in READERS:
        if suffix not in _BY_NAME_ONLY and (files := sorted(path.glob(_visible(suffix)))):
            return _open_files(files)
    return FolderSource(path)


def _visible(suffix: str) -> str:
    """A glob of the files of a folder with this suffix: macOS's ._train.tar beside train.tar is no shard."""
    return f"[!.]*{suffix}"


def _open_files(paths: list[Path]) -> Source:
    """The images of one file, or of several shards of a kind."""
    suffixes = {path.suffix for path in paths}
    if len(suffixes) == 1 and (reader := READERS.get(paths[0].suffix)):
        return reader(paths)
    raise UserError(f"{paths[0]} is no data set: give a file or shards of one kind ({', '.join(READERS)}), or a folder")


__all__ = ["READERS", "Source", "as_one", "open_source", "open_sources"]
