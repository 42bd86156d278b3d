"""An epoch in which some sets of images come more often than others: a row of places, for a permutation to shuffle."""

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.loading.permutation import permute

Share = tuple[int, float]  # images of a set, and how often each comes in an epoch


class Places:
    """The places of an epoch: of a set of n images at the rate w, round(w·n), one at least; set behind set.

    The first ⌊w⌋·n of a set's places are all its images, ⌊w⌋ times, and what is left is a part of them, another each
    epoch: none comes twice there. So in an epoch each image comes ⌊w⌋ or ⌈w⌉ times, and all equally often in the mean.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        counts = [images for images, _ in shares]
        self._counts = np.array(counts, np.int64)
        self._places = np.array([max(1, round(images * rate)) for images, rate in shares], np.int64)
        self._first_image, self._first_place = (np.cumsum(sizes) - sizes for sizes in (self._counts, self._places))
        self.size = int(self._places.sum())

    def images(self, places: np.ndarray, keys: Callable[[int], np.ndarray], *, in_runs: bool) -> np.ndarray:
        """The images at ``places``, both int64 (n,).

        ``keys`` are an epoch's, of a set by its number, as `permute` takes them. ``in_runs`` makes the part of a set
        consecutive images from a random one on, for disks that seek.
        """
        of = np.searchsorted(self._first_place, places, side="right") - 1
        counts = self._counts[of]
        rounds, images = np.divmod(places - self._first_place[of], counts)
        in_part = rounds == (self._places // self._counts)[of]
        for number in np.unique(of[in_part]).tolist():
            rows, count = np.flatnonzero(in_part & (of == number)), int(self._counts[number])
            if in_runs:
                images[rows] = (images[rows] + int(keys(number)[0] % np.uint64(count))) % count
            else:
                images[rows] = permute(images[rows], count, keys(number))
        return images + self._first_image[of]
