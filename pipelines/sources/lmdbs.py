"""Images in an LMDB environment, of the two kinds that are common.

Either the values are image records (``IRHeader``, then the image), the label in the header; or they are images, and the
folder in the key is the identity: ``identity/name``. Insightface's records of no image, which have two labels, are left
out, and other values under a key that begins with ``__`` (``__len__``, ``__keys__``); elsewhere those are an error.
"""

from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import image_suffix
from pipelines.common.log import get_logger
from pipelines.sources.identities import number_labels, number_names, read_identities
from pipelines.sources.lmdb_pages import Entry, entries
from pipelines.sources.ranges import RangeReader
from pipelines.sources.recordio import unpack
from pipelines.sources.source import LabelledSource

logger = get_logger(__name__)

_HEAD = 4096  # bytes of a value that are read to tell what it is: up to a thousand labels fit
_NEITHER = "holds neither an image record nor, as 'identity/name', an image"


class LmdbSource(LabelledSource):
    """The images of the LMDB at ``path``, a folder with ``data.mdb`` or the file itself, in the order of the keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = RangeReader(path / "data.mdb" if path.is_dir() else path)
        listed, people = self._list()
        self._keys = [entry.key for entry in listed]
        self._begins = np.array([entry.begin for entry in listed], np.int64)
        self._lengths = np.array([entry.length for entry in listed], np.int64)
        if not self._keys:
            raise UserError(f"{path} holds no images")
        folder = path if path.is_dir() else path.parent
        names = [person for person in people if isinstance(person, str)]
        if 0 < len(names) < len(people):
            raise UserError(f"{path} holds both image records with labels and images called 'identity/name'")
        if names:
            super().__init__(*number_names(names))
        else:
            super().__init__(*number_labels(np.array(people, np.int64), read_identities(folder), path))

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [self._image(index) for index in indices], self._labels[indices]

    def _image(self, index: int) -> np.ndarray:
        value = self._file.read(int(self._begins[index]), int(self._lengths[index]))
        try:
            return value if image_suffix(value) else unpack(value)[1]
        except ValueError as error:
            raise UserError(f"{self.place(index)}: {error}") from None

    def place(self, index: int) -> str:
        return f"{self.path} key {self._keys[index]!r}"

    def _list(self) -> tuple[list[Entry], list[str | int]]:
        """The entries of the images, and the names or class numbers of their identities."""
        images, people, empty = [], [], 0
        for entry in entries(self._file):
            if entry.key.startswith(b"__"):
                continue
            try:
                person = self._identity(entry)
            except ValueError as error:
                raise UserError(f"{self.path}: key {entry.key[:80]!r} {error}") from None
            if person is None:
                empty += unpack(self._file.read(entry.begin, entry.length))[0].flag != 2
                continue
            images.append(entry)
            people.append(person)
        if empty:
            logger.warning("%s: %d records without an image are left out", self.path, empty)
        return images, people

    def _identity(self, entry: Entry) -> str | int | None:
        """The name of an entry's identity, or its class number in a record; None for a record without an image."""
        value = self._file.read(entry.begin, min(entry.length, _HEAD))
        if image_suffix(value):
            folder = entry.key.decode(errors="surrogateescape").rpartition("/")[0]
            if not folder:
                raise UserError("has no identity: an image's key should read 'identity/name'")
            return folder
        try:
            header, image = unpack(value)
        except ValueError:
            raise UserError(_NEITHER) from None
        if not len(image):
            return None
        if not image_suffix(image):
            raise UserError(_NEITHER)
        label = float(np.ravel(header.label)[0])
        if not label.is_integer() or label < 0:
            raise UserError(f"has label {label:.10g}, which is no class number")
        return int(label)
