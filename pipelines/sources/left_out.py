"""What lies among the images of a data set and is none by its name: counted by suffix and told in one line."""

import os
from collections import Counter

COMPANIONS = frozenset(
    (".cls", ".csv", ".html", ".json", ".lst", ".md", ".npy", ".pts", ".txt", ".xml")
)  # no images lost
_TOLD = 5  # kinds that are named


class LeftOut:
    """Counts by suffix. Names that begin with a dot, and texts and landmarks beside the images, do not count."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str, kind: str = "") -> bool:
        """Count a file, under ``kind`` rather than its suffix if that is given. Returns whether it counts."""
        name = name.rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  a str: there may be millions
        if name.startswith(".") or suffix in COMPANIONS:
            return False
        self.counts[kind or (suffix if suffix and not suffix[1:].isdecimal() else "no suffix")] += 1
        return True

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """Such as ``12 files (.gif 8, no suffix 4)``."""
        kinds = [f"{kind} {count}" for kind, count in self.counts.most_common(_TOLD)]
        return f"{self.counts.total()} files ({', '.join(kinds + ['…'] * (len(self.counts) > _TOLD))})"
