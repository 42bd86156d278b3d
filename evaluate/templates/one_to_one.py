"""1:1 figures of pairs of templates, with what a report draws from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluate.protocols.ijb_lists import IJB, Images
from evaluate.protocols.resampling import draw, impostor_limits, people, rates_above
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.reporting.schema import HardPair, OneToOne, PairKind
from evaluate.reporting.uncertainty import uncertainty

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HARDEST, SHOWN = 12, 4  # pairs of each kind kept for the report, and images of each of their templates


def verification(pairs: TemplatePairs, rule: str) -> OneToOne:
    """1:1 figures of pairs of templates, with what a report draws from.

    Intervals are by the people that genuine pairs connect; a template that is in none is somebody of its own.
    """
    first, second, same, scores, roc = pairs.first, pairs.second, pairs.same, pairs.scores, pairs.roc
    ids = pairs.templates.ids
    points = {f"{far:g}": roc.at(far, rule) for far in FARS}
    tar = {far: point.tar for far, point in points.items()}
    lowest, highest = roc.genuine[: 4 * HARDEST][-1], roc.impostor[-4 * HARDEST :][0]

    def hardest(chosen: np.ndarray, sign: int) -> list[HardPair]:
        """The first pairs by ``sign`` times score, listed pairs of the same two templates once."""
        found: dict[tuple, HardPair] = {}
        for i in chosen[np.argsort(sign * scores[chosen], kind="stable")]:
            pair = sorted((int(ids[first[i]]), int(ids[second[i]])))
            found.setdefault(tuple(pair), HardPair(templates=pair, score=round(float(scores[i]), 6)))
        return list(found.values())[:HARDEST]

    fars, edges = np.geomspace(1e-7, 1, 281), np.linspace(-1, 1, 201)
    return OneToOne(
        tar=tar,
        far={far: point.far for far, point in points.items()},
        threshold={far: point.threshold for far, point in points.items()},
        rule=rule,
        genuine=len(roc.genuine),
        impostor=len(roc.impostor),
        roc={"far": fars.tolist(), "tar": roc.curve(fars).tolist()},
        histogram={
            "edges": edges.tolist(),
            "genuine": np.diff(np.searchsorted(roc.genuine, edges)).tolist(),
            "impostor": np.diff(np.searchsorted(roc.impostor, edges)).tolist(),
        },
        hardest={
            "genuine": hardest(np.flatnonzero(same & (scores <= lowest)), 1),
            "impostor": hardest(np.flatnonzero(~same & (scores >= highest)), -1),
        },
        **tar_uncertainty(tar, scores, first, second, same),
    )


def tar_uncertainty(
    tar: Mapping[str, float], scores: np.ndarray, first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> dict[str, Any]:
    """The intervals of ``tar`` and its resamples, from the scores (P,) of pairs of templates (P,), (P,)."""
    genuine = np.flatnonzero(same)
    person = people(first[genuine], second[genuine], max(first.max(), second.max()) + 1)
    signs = draw(person.max() + 1)
    # A pair may be listed as genuine and as impostor: two images of one person are no strangers.
    impostor = np.flatnonzero(~same & (person[first] != person[second]))
    limits = impostor_limits(scores[impostor], person[first[impostor]], person[second[impostor]], FARS, signs)
    whose = person[first[genuine]]
    values = rates_above(scores[genuine], whose, limits, signs)
    return uncertainty(tar, dict(zip(tar, values.T)), "subjects", whose, signs)


def attach_images(hardest: Mapping[PairKind, list[HardPair]], images: Images, data: IJB) -> None:
    """Give each of the hardest pairs the paths of some images of its two templates, where they exist."""
    for pair in (pair for pairs in hardest.values() for pair in pairs):
        rows = [np.flatnonzero(images.template == template)[:SHOWN] for template in pair.templates]
        paths = [[data.image_path(images.names[row]) for row in side] for side in rows]
        if all(path.is_file() for side in paths for path in side):
            pair.images = [[str(path.absolute()) for path in side] for side in paths]
