"""1:1 among one's own people: figures of all pairs of images, or of references with the others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate.own_people.confusions import confused_pairs
from evaluate.own_people.faces import Faces
from evaluate.protocols.all_pairs import EDGES, FARS, compare
from evaluate.protocols.intervals import threshold_intervals
from evaluate.protocols.resampling import draw, rates_above
from evaluate.reporting.schema import OwnPairs
from evaluate.reporting.uncertainty import uncertainty

REFERENCE = "gallery"  # in a file's name


def compared(paths: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The number of each image's person, int64 (n,), and which are references, bool (n,), None where none is."""
    _, person = np.unique(names, return_inverse=True)
    reference = np.array([REFERENCE in Path(path).name.lower() for path in paths])
    return person, reference if reference.any() else None


def own_pairs(faces: Faces, fars: Sequence[float] = FARS) -> OwnPairs:
    """1:1 figures of all pairs, or of references with the others."""
    person, reference = compared(faces.paths, faces.names)
    found = compare(faces.vectors, person, reference, fars)
    points = {f"{far:g}": found.at(far) for far in found.fars}
    tar = {far: point.tar for far, point in points.items()}
    threshold = {far: point.threshold for far, point in points.items()}
    above = {far: round(point.far * found.impostors) for far, point in points.items()}
    signs = draw(person.max() + 1)
    limits = found.resampled_limits(signs)
    values = rates_above(found.genuine, person[found.first], limits, signs)
    curve = found.curve()
    return OwnPairs(
        images=len(person),
        people=int(person.max()) + 1,
        genuine=len(found.genuine),
        impostor=found.impostors,
        left_out=faces.left_out,
        tar=tar,
        far={far: point.far for far, point in points.items()},
        threshold=threshold,
        threshold_interval=threshold_intervals(threshold, limits, above),
        roc={"far": curve[0].tolist(), "tar": curve[1].tolist()},
        histogram={
            "edges": EDGES.tolist(),
            "genuine": np.histogram(found.genuine, EDGES)[0].tolist(),
            "impostor": found.counts.tolist(),
        },
        confusions=confused_pairs(faces, found),
        **uncertainty(tar, dict(zip(tar, values.T)), "people", person[found.first], signs, who=faces.names),
    )
