"""Which files in folders of images are meant: by their names, without opening them."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.formats import is_image


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and its folders, sorted, but for those in folders whose names begin with a dot."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_image(path.name) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


class ListedImages:
    """Image ``files`` as lists name them, which may leave out the suffix, or have another than the file."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self._by_stem[file.stem].append(file)

    def find(self, stem: str, suffix: str = "") -> Path | None:
        """The file of that ``stem``, with the ``suffix`` if there is such a one; None if there is none.

        Raises ``UserError`` where several may be meant.
        """
        found = self._by_stem.get(stem, [])
        found = [file for file in found if file.suffix == suffix] or found
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} may both be meant by '{stem}{suffix}' of a list: keep one")
        return found[0] if found else None
