"""1:1 among any people: all pairs of images, in bounded memory, and thresholds for wanted false-accept rates.

Two images of one person are a genuine pair, two of different people an impostor pair. Where some images are references
(of a passport, say), only a reference and another image make a pair. A pair is accepted when its cosine exceeds the
threshold, which is the lowest with a share of accepted impostor pairs of at most the wanted FAR.

Of 100 000 images there are five thousand million pairs, of which the highest impostor scores are held, and the others
counted. All genuine pairs are held.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.protocols.ranges import ranges
from evaluate.protocols.resampling import impostor_limits
from evaluate.protocols.roc import OperatingPoint, allowed, tar_at
from evaluate.protocols.scores import Largest, error_bound, exact
from pipelines.common.errors import UserError

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
EDGES = np.linspace(-1, 1, 201)  # of the histogram
_HELD = 1 << 24  # impostor pairs at most
_CELLS = 1 << 24  # of a block of scores


@dataclass(frozen=True)
class AllPairs:
    """The scores of all pairs of unit vectors ``vectors`` float64 (n, d), of people ``person`` int64 (n,).

    Attributes:
        first, second: the images of the G genuine pairs, int64 (G,).
        genuine: their scores, float64 (G,).
        impostors: how many impostor pairs there are.
        top: the highest scores of these, falling, float32 (k,).
        top_first, top_second: their images, int64 (k,).
        degree: how many impostor pairs each person is in, float64 (u,).
        counts: impostor pairs between the ``EDGES``, int64 (200,), by their float32 scores.
        fars: those of the wanted FARs that k scores tell, and one pair at least would meet.
    """

    vectors: np.ndarray
    person: np.ndarray
    first: np.ndarray
    second: np.ndarray
    genuine: np.ndarray
    impostors: int
    top: np.ndarray
    top_first: np.ndarray
    top_second: np.ndarray
    degree: np.ndarray
    counts: np.ndarray
    fars: tuple[float, ...]

    def at(self, far: float) -> OperatingPoint:
        """The operating point for one of ``fars``, by exact scores.

        The a + 1 highest float32 scores have the a + 1-th exact one within ``error`` of the last of them; so what lies
        farther from that than two errors (three: the limits are rounded) is known to be accepted, or not to be.
        """
        accepted = allowed(far, self.impostors)
        slack = 3 * error_bound(self.vectors.shape[1])
        near = float(self.top[accepted])
        above, below = np.searchsorted(-self.top, [-(near + slack), -(near - slack)])
        scores = exact(self.vectors, self.vectors, self.top_first[above:below], self.top_second[above:below])
        limit = float(np.sort(scores)[::-1][accepted - above])
        met = (above + np.count_nonzero(scores > limit)) / self.impostors
        return OperatingPoint(float((self.genuine > limit).mean()), float(met), limit)

    def curve(self, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """FAR and TAR (points,) as far as the held scores tell, for drawing."""
        fars = np.geomspace(1 / self.impostors, max(len(self.top) - 1, 1) / self.impostors, points)
        return fars, tar_at(np.sort(self.genuine), self.top[::-1], self.impostors, fars)[0]

    def resampled_limits(self, signs: np.ndarray) -> np.ndarray:
        """The thresholds (B, k) for ``fars`` with the people resampled by ``signs`` (B, u)."""
        first, second = self.person[self.top_first], self.person[self.top_second]
        return impostor_limits(self.top, first, second, self.fars, signs, self.degree)


def compare(
    vectors: np.ndarray,
    person: np.ndarray,
    reference: np.ndarray | None = None,
    fars: Sequence[float] = FARS,
    held: int = _HELD,
) -> AllPairs:
    """Score all pairs of unit vectors float64 (n, d).

    Args:
        vectors: of the images.
        person: whom they show, int64 (n,), numbered from 0.
        reference: which images are references, bool (n,); None if all are compared with all.
        fars: wanted FARs.
        held: impostor pairs to hold at most.

    Raises:
        UserError: there is no genuine pair, or there are too few impostor pairs for any of ``fars``.
    """
    pairs = _layout(person, reference)
    told = _measurable(fars, pairs, held)
    most = min(pairs.impostors, held, int(4 * told[-1] * pairs.impostors) + 4096)
    top, top_first, top_second, counts = _highest(vectors, pairs, most)
    return AllPairs(
        vectors=vectors,
        person=person,
        first=pairs.first,
        second=pairs.second,
        genuine=exact(vectors, vectors, pairs.first, pairs.second),
        impostors=pairs.impostors,
        top=top,
        top_first=top_first,
        top_second=top_second,
        degree=pairs.degree,
        counts=counts,
        fars=told,
    )


def check_measurable(person: np.ndarray, reference: np.ndarray | None = None, fars: Sequence[float] = FARS) -> None:
    """Raise what `compare` would, before there are vectors."""
    _measurable(fars, _layout(person, reference), _HELD)


@dataclass(frozen=True)
class _Layout:
    """Which images make pairs: rows ``left`` (l,) with columns ``right`` (r,), indices of images, a person's behind one
    another in both.

    Attributes:
        left_out, end: of each row, the columns [left_out, end) make no impostor pairs: they show the row's own person,
            or, without references, were met before. Both int64 (l,).
        first, second: the images of the genuine pairs, int64 (G,).
        impostors: how many impostor pairs there are.
        degree: how many impostor pairs each person is in, float64 (u,).
        met_once: whether rows and columns are the same images, so that a row leaves out all columns up to its ``end``.
    """

    left: np.ndarray
    right: np.ndarray
    left_out: np.ndarray
    end: np.ndarray
    first: np.ndarray
    second: np.ndarray
    impostors: int
    degree: np.ndarray
    met_once: bool


def _layout(person: np.ndarray, reference: np.ndarray | None) -> _Layout:
    order = np.argsort(person, kind="stable")
    left = order if reference is None else order[reference[order]]
    right = order if reference is None else order[~reference[order]]
    begin, end = (np.searchsorted(person[right], person[left], side=side) for side in ("left", "right"))
    # Without references a pair is met once: with the image that comes first as its row.
    own = np.arange(1, len(left) + 1) if reference is None else begin
    left_out = np.zeros(len(left), np.int64) if reference is None else begin
    row, place = ranges(own, end)
    of_left, of_right = (np.bincount(person[side], minlength=person.max() + 1).astype(float) for side in (left, right))
    degree = of_left * (len(right) - of_right)
    if reference is not None:
        degree += of_right * (len(left) - of_left)
    impostors = int((len(right) - (end - left_out)).sum())
    return _Layout(left, right, left_out, end, left[row], right[place], impostors, degree, reference is None)


def _measurable(fars: Sequence[float], pairs: _Layout, held: int) -> tuple[float, ...]:
    """Those of ``fars`` that so many pairs tell, rising. Raises ``UserError`` where they tell none."""
    impostors = pairs.impostors
    if not len(pairs.first) or not impostors:
        raise UserError(
            f"there are {len(pairs.first)} pairs of one person and {impostors} of two: some of both are needed"
        )
    told = tuple(sorted(far for far in fars if allowed(far, impostors) >= 1 and 2 * far * impostors <= held))
    if not told:
        raise UserError(
            f"there are {impostors} pairs of two people: the FARs that they tell are 1/{impostors} to "
            f"{min(held / 2 / impostors, 1):.2g}"
        )
    return told


def _highest(vectors: np.ndarray, pairs: _Layout, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The ``most`` highest scores of impostor pairs, their images, and the counts of all, as `AllPairs` has them."""
    left, right = pairs.left, pairs.right
    largest = Largest(most, 4 * error_bound(vectors.shape[1]))
    counts, masked = np.zeros(len(EDGES) - 1, np.int64), 0
    transposed = np.ascontiguousarray(vectors[right].T, dtype=np.float32)
    size = max(1, min(512, _CELLS // len(right)))
    blocks: list[tuple[int, int, int]] = []  # the first key of each, its first column, its width
    key = 0
    for start in range(0, len(left), size):
        stop = min(start + size, len(left))
        column = int(pairs.end[start]) if pairs.met_once else 0
        if column == len(right):
            break
        scores = vectors[left[start:stop]].astype(np.float32) @ transposed[:, column:]
        for line, low, high in zip(scores, pairs.left_out[start:stop], pairs.end[start:stop]):
            line[max(low - column, 0) : high - column] = -np.inf
            masked += high - max(low, column)
        blocks.append((key, column, scores.shape[1]))
        largest.add(scores, key)
        key += scores.size
        bins = ((scores.clip(-1, 1) + 1) * (len(counts) / 2)).astype(np.uint8).clip(max=len(counts) - 1)
        counts += np.bincount(bins.ravel(), minlength=len(counts))
    counts[0] -= masked
    keys, columns, widths = np.array(blocks, np.int64).T
    top, cells = largest.held()
    falling = np.argsort(-top, kind="stable")
    top, cells = top[falling], cells[falling]
    block = np.searchsorted(keys, cells, side="right") - 1
    line, place = np.divmod(cells - keys[block], widths[block])
    return top, left[block * size + line], right[columns[block] + place], counts
