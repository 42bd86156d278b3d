"""TinyFace: probes of a few pixels among gallery images of the same people and many distractors.

Cheng, Zhu and Gong, "Low-Resolution Face Recognition" (2018), closed set. A probe's rank is that of the best of its
person's images; these are several. The folder holds ``Probe/``, ``Gallery_Match/`` and ``Gallery_Distractor/`` as the
release's ``Testing_Set`` does, with images that are aligned. Which of them are probes and mates, and whom they show, is
told by the release's two ``.mat`` lists where they are given; else a person is the number before the first ``_`` of a
name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from evaluate.protocols.identification import best_mates, search
from pipelines.common.errors import UserError, one_line
from pipelines.common.image_files import ListedImages, images_below

FOLDERS = ("Probe", "Gallery_Match", "Gallery_Distractor")
# By folder the list, and its variables: names (n, 1), cells of text, and numbers of people (n, 1).
MAT_LISTS = {
    "Probe": ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
    "Gallery_Match": ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
}
RANKS = (1, 5, 20)


@dataclass(frozen=True)
class Lists:
    """Image files, and whom they show: int64 (Q,) and (M,); nothing is known of the distractors."""

    probes: list[Path]
    mates: list[Path]
    distractors: list[Path]
    probe_person: np.ndarray
    mate_person: np.ndarray


def read_lists(folder: Path, mat: Path | None = None) -> Lists:
    """The images of the folder; every probe must have a mate.

    Args:
        folder: with the images in ``FOLDERS``.
        mat: where ``MAT_LISTS`` lie. Probes and mates are those that they name, in their order; a name may have another
            suffix than the aligned image. Without it they are all images, in order of their names, as the distractors
            are in any case.
    """
    found: list[list[Path]] = []
    for name in FOLDERS:
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"there is no {folder / name}: --data needs {', '.join(FOLDERS)}, aligned")
        files = images_below(folder / name)
        if not files:
            raise UserError(f"{folder / name} holds no image")
        found.append(files)
    probes, mates, distractors = found
    if mat:
        (probes, probe_person), (mates, mate_person) = (
            _listed(mat / name, images, ids, files)
            for (name, images, ids), files in zip(MAT_LISTS.values(), (probes, mates))
        )
    else:
        probe_person, mate_person = _people(probes), _people(mates)
    alone = np.flatnonzero(~np.isin(probe_person, mate_person))
    if len(alone):
        raise UserError(f"{len(alone)} probes have no image in {folder / FOLDERS[1]}, the first is {probes[alone[0]]}")
    return Lists(probes, mates, distractors, probe_person, mate_person)


def _listed(path: Path, images: str, ids: str, files: list[Path]) -> tuple[list[Path], np.ndarray]:
    """Those of the ``files`` that a ``.mat`` list names, and whom it says they show, int64 (n,)."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no list {path}")
    try:
        content = loadmat(path, squeeze_me=True, chars_as_strings=True, variable_names=[images, ids])
        names = [str(name) for name in np.atleast_1d(content[images]).ravel()]
        people = np.atleast_1d(content[ids]).ravel().astype(np.int64)
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}") from None
    except Exception as error:  # scipy raises many classes at a damaged file
        raise UserError(f"{path} is no sound .mat list: {one_line(error)}") from None
    if len(names) != len(people):
        raise UserError(f"{path} has {len(names)} names in {images}, {len(people)} numbers in {ids}")
    listed = ListedImages(files)
    found = [listed.find(Path(name).stem, Path(name).suffix) for name in names]
    missing = [name for name, file in zip(names, found) if file is None]
    if missing:
        raise UserError(f"{len(missing)} of {len(names)} images of {path} are not there, the first is {missing[0]}")
    return [file for file in found if file], people


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
