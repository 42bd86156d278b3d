"""Which files in folders of images are meant: by their names, without opening them."""

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


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """The files by their names without suffix. Raises ``UserError`` where two have one."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(file.stem, file)
        if other is not file:
            raise UserError(f"{other} and {file} have one name but for folder or suffix, which no list tells: keep one")
    return found
