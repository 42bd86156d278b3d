"""Image folders: ``root/identity/image``."""

import os
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import IMAGE_SUFFIXES, is_image
from pipelines.common.log import get_logger
from pipelines.sources.identities import Identities
from pipelines.sources.left_out import LeftOut
from pipelines.sources.source import FileSource

logger = get_logger(__name__)

_EXAMPLES = 5  # identities that a message names


class FolderSource(FileSource):
    """A folder ``root/identity/image``. Classes are the identities that have images, in sorted order of their names.

    Only that one level is looked at. Names that begin with a dot are left out; a warning says what else is.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = os.path.join(root, "")  # noqa: PTH118  a str: there may be millions
        files, identities, counts = list[str](), list[str](), list[int]()
        left_out, touched, without = LeftOut(), 0, list[str]()
        with os.scandir(root) as entries:
            folders = sorted((entry.name, entry.path) for entry in entries if not entry.name.startswith("."))
        for identity, folder in folders:
            if not os.path.isdir(folder):  # noqa: PTH112  unlike DirEntry.is_dir and Path.is_dir it bears symlink loops
                if is_image(identity):
                    left_out.add(identity, "not in a folder")
                continue
            names, lost = _look_into(folder, left_out)
            touched += lost
            if names:
                identities.append(identity)
                files += names
                counts.append(len(names))
            else:
                without.append(identity)
        if not counts:
            found = f"; it has {left_out}" if left_out else ""
            raise UserError(
                f"{root} holds neither train.rec nor identity/*.jpg (or {', '.join(IMAGE_SUFFIXES[1:])}){found}"
            )
        if left_out or without:
            logger.warning("%s: left out: %s", root, _told(left_out, touched, without))
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        super().__init__(Identities(len(identities), identities), labels, files)

    def place(self, index: int) -> str:
        return f"{self._root}{self._identities.names[self._labels[index]]}/{self._names[index]}"


def _look_into(folder: str, left_out: LeftOut) -> tuple[list[str], bool]:
    """The images of a folder, sorted; and whether anything else there was counted."""
    names, lost = [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_image(name):
                names.append(name)
            else:
                lost |= left_out.add(name, "folder" if entry.is_dir(follow_symlinks=False) else "")
    return sorted(names), lost


def _told(left_out: LeftOut, touched: int, without: list[str]) -> str:
    """What a folder's files that are no images come to, in words."""
    text = f"{left_out} of {touched} identities" if left_out else ""
    if without:
        some = ", ".join(without[:_EXAMPLES]) + ", …" * (len(without) > _EXAMPLES)
        text += f"{', and ' if text else ''}{len(without)} identities that have no images: {some}"
    return text
