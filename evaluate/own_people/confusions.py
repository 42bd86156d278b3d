"""Who is taken for whom: pairs of images that are most or least alike though they should not be, and their picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evaluate.own_people.faces import Faces
from evaluate.protocols.all_pairs import AllPairs
from evaluate.protocols.identification import Search
from evaluate.reporting.schema import Confusion, Thresholds

_SHOWN = 12  # confusions of each kind
_LETTERS = 14  # of a name in a picture


def confused_pairs(faces: Faces, found: AllPairs) -> dict[str, list[Confusion]]:
    """The most similar strangers, two people once, and the least similar images of a person, a person once."""
    order = np.argsort(found.genuine, kind="stable")
    kinds = {
        "Most similar strangers": (found.top_first, found.top_second, found.top),
        "Least similar images of one person": (found.first[order], found.second[order], found.genuine[order]),
    }
    confusions = {}
    for title, (first, second, scores) in kinds.items():
        people = np.sort(np.stack([found.person[first], found.person[second]]), axis=0)
        _, places = np.unique(people[0] * (found.person.max() + 1) + people[1], return_index=True)
        confusions[title] = [
            Confusion(
                people=[faces.names[image] for image in (first[place], second[place])],
                images=[faces.paths[image] for image in (first[place], second[place])],
                score=float(scores[place]),
            )
            for place in np.sort(places)[:_SHOWN]
        ]
    return confusions


def confused_searches(
    gallery: Faces, probes: Faces, unknown: Faces, found: Search, person: np.ndarray, whose: np.ndarray
) -> dict[str, list[Confusion]]:
    """The probes that find somebody else first, and the unknown ones that are most like somebody."""
    names, paths = [*probes.names, *unknown.names], [*probes.paths, *unknown.paths]
    vectors, whose = np.concatenate([probes.vectors, unknown.vectors]), np.r_[whose, np.full(len(unknown.names), -1)]
    groups = {"Probes that find somebody else": found.rank > 0, "Unknown people most like somebody": found.rank < 0}
    confusions: dict[str, list[Confusion]] = {}
    for title, which in groups.items():
        rows = np.flatnonzero(which)
        for row in rows[np.argsort(-found.best_other[rows], kind="stable")][:_SHOWN]:
            scores = np.where(person == whose[row], -np.inf, gallery.vectors @ vectors[row])
            other = int(scores.argmax())
            confusion = Confusion(
                people=[names[row], gallery.names[other]],
                images=[paths[row], gallery.paths[other]],
                score=float(scores[other]),
            )
            confusions.setdefault(title, []).append(confusion)
    return confusions


def draw_confusions(found: Thresholds, folder: Path, crops: Mapping[str, np.ndarray]) -> str:
    """Write a picture of the confusions; returns its file's name."""
    from evaluate.reporting.pictures import Pair, pair_sheet, save_figure  # matplotlib takes its time to import

    def drawn(confusion: Confusion) -> Pair:
        left, right = (crops[path] if path in crops else Path(path).read_bytes() for path in confusion.images)
        return Pair([left], [right], _caption(confusion))

    groups = {title: [drawn(one) for one in confusions] for title, confusions in found.confusions.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(pair_sheet(groups, columns=4), folder / "confusions.png", dpi=130)
    return "confusions.png"


def _caption(confusion: Confusion) -> str:
    """Who they are, and the cosine."""
    people = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in dict.fromkeys(confusion.people)]
    return f"{' · '.join(people)}: {confusion.score:.3f}"
