"""Images in an LMDB environment, of the two kinds that are common.

Either the values are image records (``IRHeader``, then the image), the label in the header; or they are images, and the
folder in the key is the identity: ``identity/name``. Other values are left out when they stand under a key that begins
with ``__`` (``__len__``, ``__keys__``), and are an error elsewhere.
"""

from pathlib import Path

import numpy as np

from pipelines.formats import image_suffix
from pipelines.identities import number_identities, read_identities
from pipelines.recordio import unpack


class LmdbSource:
    """The images of the LMDB at ``path``, a folder with ``data.mdb`` or the file itself, in the order of the keys."""

    def __init__(self, path: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise ValueError(f"LMDB needs a package ({error}): pip install 'facemill[convert]'") from None
        self.path = path
        try:
            self._environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, readahead=False
            )
            with self._environment.begin(buffers=True) as transaction:
                self._keys, names = self._list(transaction.cursor())
        except lmdb.Error as error:
            raise ValueError(f"{path} is no readable LMDB ({error})") from None
        if not self._keys:
            raise ValueError(f"{path} holds no images")
        folder = path if path.is_dir() else path.parent
        self._identities, self._labels = number_identities(names, read_identities(folder))
        self.num_classes = self._identities.count

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        with self._environment.begin() as transaction:
            values = [transaction.get(self._keys[index]) for index in indices]
        images = [value if image_suffix(value) else unpack(value)[1] for value in values]
        return [np.frombuffer(image, np.uint8) for image in images], self._labels[indices]

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return self._labels[indices]

    def identity(self, label: int) -> str:
        return self._identities.name(label)

    def describe(self, index: int) -> str:
        return f"{self.path} key {self._keys[index]!r}, label {self._labels[index]}"

    def prefetch(self, indices: np.ndarray) -> None:
        """Does nothing: where the values lie is known only to LMDB."""

    def _list(self, cursor: "lmdb.Cursor") -> tuple[list[bytes], list[str]]:  # noqa: F821  imported where it is used
        keys, names = [], []
        for key, value in cursor:
            key = bytes(key)
            if key.startswith(b"__"):
                continue
            name = _identity(key, value)
            if name is None:
                continue
            if not name:
                raise ValueError(
                    f"{self.path}: key {key[:80]!r} holds neither an image record nor, as 'identity/name', an image"
                )
            keys.append(key)
            names.append(name)
        return keys, names


def _identity(key: bytes, value: memoryview) -> str | None:
    """The name or number of the identity of an entry; None for a record without an image, empty where there is none."""
    if image_suffix(value):
        return key.decode(errors="surrogateescape").rpartition("/")[0]
    try:
        header, image = unpack(value)
    except ValueError:
        return ""
    if not len(image):
        return None
    label = float(np.ravel(header.label)[0])
    return str(int(label)) if image_suffix(image) and label.is_integer() and label >= 0 else ""
