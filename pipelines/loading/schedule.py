"""Which sample comes when, and with which random numbers: pure functions of (seed, epoch, position).

Global batch k of an epoch is its positions [kB, (k+1)B), and rank r of R takes the r-th of R equal slices of it. So any
number of ranks with the same global batch sees the same samples with the same random numbers, and to resume is to ask
for a later step.

All randomness comes from the counter-based generator Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011), keyed by (seed, epoch).
"""

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from pipelines.common.errors import UserError, unknown
from pipelines.loading.permutation import ROUNDS, permute
from pipelines.loading.rates import Places, Share

SHUFFLES = ("global", "block", "none")

_BLOCK = 1024  # consecutive records that a disk which seeks should read at one go: some 5 MB of 112x112 JPEGs
_WINDOW = 64 * _BLOCK  # positions that are shuffled among each other: some 330 MB, to be held by the page cache
_LEAD = 8  # global steps by which the disk is told in advance what will be read
_CHUNK = 8  # steps whose order is computed at a time: for a single one, calling numpy costs more than its work

_ORDER, _BLOCKS, _ROTATION, _UNIFORMS, _SUBSTITUTES, _PARTS = range(6)  # what randomness is for
_COLUMNS = 8  # float32 numbers in one output of Philox


class Schedule:
    """The order of ``size`` samples in global batches of ``batch_size``; ``num_uniforms`` random numbers for each.

    ``shuffle`` is ``global`` (a permutation of all samples), ``block`` (blocks of consecutive records are permuted,
    then the samples within a window of blocks), or ``none``. What is left of an epoch after the last whole batch is
    dropped; with a shuffle that is a different remainder each epoch.

    ``shares`` are the sets that the samples are of, in order, where not every sample is to come once an epoch: then
    what is put in order is `Places`, and the attribute ``size`` is their number.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: str = "global",
        num_uniforms: int = 0,
        shares: Sequence[Share] = (),
    ) -> None:
        if shuffle not in SHUFFLES:
            raise unknown("shuffle", shuffle, SHUFFLES)
        if not 0 <= seed < 2**64:
            raise UserError(f"the seed {seed} is not in [0, 2^64)")
        assert not shares or sum(images for images, _ in shares) == size
        self._samples = size
        self._places = Places(shares) if shares else None
        size = self._places.size if self._places else size
        if not 1 <= batch_size <= size:
            raise UserError(f"a global batch of {batch_size} does not fit into a data set of {size} images")
        self.size = size
        self.batch_size = batch_size
        self.steps_per_epoch = size // batch_size
        self.lead = -(-min(_WINDOW, size) // batch_size) if shuffle == "block" else _LEAD
        self._seed = seed
        self._shuffle = shuffle
        self._num_uniforms = num_uniforms
        self._chunk = lru_cache(maxsize=64)(self._order_of_chunk)

    def slice(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """What ``rank`` gets of global batch ``step``: indices int64 (b,) and uniforms float32 (b, num_uniforms).

        b is the global batch size over ``world_size``. The indices are not to be written to. Column c of the uniforms
        does not depend on how many columns there are.
        """
        positions = self.positions(step, rank, world_size)
        return self._order(epoch, step, rank, world_size), self._uniform(epoch, positions)

    def positions(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Where in the epoch the samples of ``slice`` stand, int64 (b,), consecutive."""
        if self.batch_size % world_size:
            raise UserError(f"a global batch of {self.batch_size} cannot be shared by {world_size} ranks")
        assert 0 <= rank < world_size and 0 <= step < self.steps_per_epoch
        share = self.batch_size // world_size
        first = step * self.batch_size + rank * share
        return np.arange(first, first + share)

    def upcoming(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Indices int64 (b,) that the disk should be told of ``lead`` steps before ``step``.

        In block mode these are consecutive records of the window to come, else the samples of the step.
        """
        if self._shuffle == "block":
            return self._images(epoch, self._in_blocks(epoch, self.positions(step, rank, world_size)))
        return self._order(epoch, step, rank, world_size)

    def substitute(self, epoch: int, position: int, attempt: int) -> int:
        """The index of the sample that stands in for the one at ``position`` when all earlier attempts are bad."""
        return int(self._raw(epoch, _SUBSTITUTES, position, attempt, count=1)[0] % np.uint64(self._samples))

    def _order(self, epoch: int, step: int, rank: int, world_size: int) -> np.ndarray:
        return self._chunk(epoch, step // _CHUNK, rank, world_size)[step % _CHUNK]

    def _order_of_chunk(self, epoch: int, chunk: int, rank: int, world_size: int) -> np.ndarray:
        """The indices of up to ``_CHUNK`` steps, int64 (steps, b)."""
        steps = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.steps_per_epoch))
        positions = np.concatenate([self.positions(step, rank, world_size) for step in steps])
        return self._images(epoch, self._shuffled(epoch, positions)).reshape(len(steps), -1)

    def _images(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The samples at places of the epoch: where all come once, a sample's place is its index."""
        if not self._places:
            return places
        keys = partial(self._raw, epoch, _PARTS, 0, count=ROUNDS)
        return self._places.images(places, keys, in_runs=self._shuffle != "global")

    def _shuffled(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The places that come at ascending positions."""
        if self._shuffle == "none":
            return positions
        if self._shuffle == "global":
            return permute(positions, self.size, self._raw(epoch, _ORDER, count=ROUNDS))
        in_window = np.empty_like(positions)
        windows = positions // _WINDOW
        for window in range(windows[0], windows[-1] + 1):
            rows, start = windows == window, window * _WINDOW
            keys = self._raw(epoch, _ORDER, 0, window, count=ROUNDS)
            in_window[rows] = start + permute(positions[rows] - start, min(_WINDOW, self.size - start), keys)
        return self._in_blocks(epoch, in_window)

    def _in_blocks(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Blocks of consecutive records in random order, the short one last.

        The records form a ring that is cut into blocks at a random place, so each epoch has others in the short block.
        """
        blocks, offsets = np.divmod(positions, _BLOCK)
        if whole_blocks := self.size // _BLOCK:
            whole = blocks < whole_blocks
            blocks[whole] = permute(blocks[whole], whole_blocks, self._raw(epoch, _BLOCKS, count=ROUNDS))
        cut = int(self._raw(epoch, _ROTATION, count=1)[0] % np.uint64(self.size))
        return (blocks * _BLOCK + offsets + cut) % self.size

    def _uniform(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Multiples of 2^-24: float32 holds them exactly, and none rounds up to 1."""
        first, count = int(positions[0]), len(positions)
        words = [
            self._raw(epoch, _UNIFORMS, first, block, count=4 * count).view(np.uint32).reshape(count, _COLUMNS)
            for block in range(-(-self._num_uniforms // _COLUMNS))
        ]
        columns = np.concatenate([np.empty((count, 0), np.uint32), *words], axis=1)[:, : self._num_uniforms]
        return (columns >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)

    def _raw(self, epoch: int, purpose: int, first: int = 0, second: int = 0, *, count: int) -> np.ndarray:
        """uint64 (count,) of the generator whose counter runs on from (first, second, 0, purpose), four words each."""
        counter = np.array([first, second, 0, purpose], np.uint64)
        return np.random.Philox(key=np.array([self._seed, epoch], np.uint64), counter=counter).random_raw(count)
