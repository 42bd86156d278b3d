"""TinyFace: probes of a few pixels among gallery images of the same people and many distractors.

Cheng, Zhu and Gong, "Low-Resolution Face Recognition" (2018), closed set. A probe's rank is that of the best of its
person's images; these are several. The folder holds ``Probe/``, ``Gallery_Match/`` and ``Gallery_Distractor/`` as the
release's ``Testing_Set`` does, with images that are aligned; a person is the number before the first ``_`` of a name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.protocols.identification import best_mates, search
from pipelines.common.errors import UserError
from pipelines.common.formats import IMAGE_SUFFIXES

FOLDERS = ("Probe", "Gallery_Match", "Gallery_Distractor")
RANKS = (1, 5, 20)


@dataclass(frozen=True)
class Lists:
    """Image files, and whom they show: int64 (Q,) and (M,); nothing is known of the distractors."""

    probes: list[Path]
    mates: list[Path]
    distractors: list[Path]
    probe_person: np.ndarray
    mate_person: np.ndarray


def read_lists(folder: Path) -> Lists:
    """The images of the folder in order of their names; every probe must have a mate."""
    found: list[list[Path]] = []
    for name in FOLDERS:
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"there is no {folder / name}: --data needs {', '.join(FOLDERS)}, aligned")
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"{folder / name} holds no image")
        found.append(files)
    probes, mates, distractors = found
    probe_person, mate_person = _people(probes), _people(mates)
    alone = np.flatnonzero(~np.isin(probe_person, mate_person))
    if len(alone):
        raise UserError(f"{len(alone)} probes have no image in {folder / FOLDERS[1]}, the first is {probes[alone[0]]}")
    return Lists(probes, mates, distractors, probe_person, mate_person)


def _people(files: list[Path]) -> np.ndarray:
    people = []
    for path in files:
        number = path.name.split("_")[0]
        if not (number.isascii() and number.isdecimal() and len(number) < 18):
            raise UserError(f"{path} names nobody: a name begins with a person's number and _")
        people.append(int(number))
    return np.array(people, np.int64)


def closed_set(probes: np.ndarray, gallery: np.ndarray, probe_person: np.ndarray, person: np.ndarray) -> np.ndarray:
    """The rank, from 0, of each probe's best mate: int64 (Q,).

    Args:
        probes: unit vectors float64 (Q, d).
        gallery: unit vectors float64 (G, d).
        probe_person: whom the probes show, (Q,); each has a mate.
        person: whom the gallery shows, (G,); -1 for distractors.

    Equal scores go by the gallery's order, on every machine alike.
    """
    return search(probes, gallery, best_mates(probes, gallery, probe_person, person)).rank
