"""Images in an LMDB environment, of the two kinds that are common.

Either the values are image records (``IRHeader``, then the image), the label in the header; or they are images, and the
folder in the key is the identity: ``identity/name``. Insightface's records of no image, which have two labels, are left
out, and other values under a key that begins with ``__`` (``__len__``, ``__keys__``); elsewhere those are an error.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.formats import image_suffix
from pipelines.sources.identities import number_labels, number_names, read_identities
from pipelines.sources.recordio import unpack
from pipelines.sources.source import LabelledSource

if TYPE_CHECKING:
    import lmdb

logger = logging.getLogger(__name__)

_NEITHER = "holds neither an image record nor, as 'identity/name', an image"


class LmdbSource(LabelledSource):
    """The images of the LMDB at ``path``, a folder with ``data.mdb`` or the file itself, in the order of the keys."""

    def __init__(self, path: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise UserError(f"LMDB needs a package ({error}): pip install 'facemill[convert]'") from None
        self.path = path
        try:
            self._environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, readahead=False
            )
            with self._environment.begin(buffers=True) as transaction:
                self._keys, people = self._list(transaction.cursor())
        except lmdb.Error as error:
            raise UserError(f"{path} is no readable LMDB ({error})") from None
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
        with self._environment.begin() as transaction:
            values = [transaction.get(self._keys[index], b"") for index in indices]
        images = [value if image_suffix(value) else unpack(value)[1] for value in values]
        return [np.frombuffer(image, np.uint8) for image in images], self._labels[indices]

    def place(self, index: int) -> str:
        return f"{self.path} key {self._keys[index]!r}"

    def _list(self, cursor: "lmdb.Cursor[memoryview]") -> tuple[list[bytes], list[str | int]]:
        """The keys of the images, and the names or class numbers of their identities."""
        keys, people, empty = [], [], 0
        for entry, value in cursor:
            key = bytes(entry)
            if key.startswith(b"__"):
                continue
            try:
                person = _identity(key, value)
            except ValueError as error:
                raise UserError(f"{self.path}: key {key[:80]!r} {error}") from None
            if person is None:
                empty += unpack(value)[0].flag != 2
                continue
            keys.append(key)
            people.append(person)
        if empty:
            logger.warning("%s: %d records without an image are left out", self.path, empty)
        return keys, people


def _identity(key: bytes, value: memoryview) -> str | int | None:
    """The name of an entry's identity, or its class number in a record; None for a record without an image."""
    if image_suffix(value):
        folder = key.decode(errors="surrogateescape").rpartition("/")[0]
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
