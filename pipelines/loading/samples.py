"""The encoded samples of one rank's batches: what the schedule names, and substitutes for what cannot be used."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch

from pipelines.loading.augment import Augmentation
from pipelines.loading.batch import FLIP, EncodedBatch
from pipelines.loading.landmarks import Landmarks, mirrored
from pipelines.loading.quarantine import Quarantine
from pipelines.loading.schedule import Schedule
from pipelines.sources.source import Source

_FLIP = 0  # the column of the schedule's uniforms that decides on the mirror image; those of the augmentation follow
_HINT_STEPS = 8  # of which the source is told at a time


def uniforms_before(augmentation: Augmentation) -> int:
    """Columns of the schedule's uniforms that the loader uses itself; those of the batch follow."""
    return _FLIP + 1 + len(augmentation.draws)


class Samples:
    """The batches of ``rank`` before their decoding: a function of the step, whenever bad samples are found.

    A sample that cannot be read, or whose label is none of the source's classes, is replaced by the schedule's
    substitute and told to the quarantine; ``mend`` does the same for those that do not decode.
    """

    def __init__(
        self,
        source: Source,
        schedule: Schedule,
        quarantine: Quarantine,
        augmentation: Augmentation,
        *,
        image_size: int,
        rank: int,
        world_size: int,
        accumulate: int,
        landmarks: Landmarks | None = None,
    ) -> None:
        self._source, self._schedule, self._quarantine = source, schedule, quarantine
        self._augmentation, self._image_size, self._landmarks = augmentation, image_size, landmarks
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate

    def batches(self, start: int) -> Iterator[EncodedBatch]:
        """All batches from step ``start`` on; the source is told some steps at a time what it will have to read."""
        lead = self._schedule.lead * self._accumulate
        hinted = 0  # the step up to which the source knows
        for step in count(start):
            if step + lead >= hinted:
                first, hinted = max(hinted, step), step + lead + _HINT_STEPS * self._accumulate
                places = map(self._place, range(first, hinted))
                self._source.prefetch(np.concatenate([self._schedule.upcoming(*place) for place in places]))
            yield self._read(step)

    def mend(self, batch: EncodedBatch, reasons: dict[int, str]) -> EncodedBatch:
        """The batch without the samples whose rows are undecodable, for these reasons."""
        for row, reason in reasons.items():
            self._put_away(batch.indices[row], reason, batch.step)
        return self._read(batch.step)

    def _read(self, step: int) -> EncodedBatch:
        place = self._place(step)
        scheduled, uniforms = self._schedule.slice(*place)
        num_classes = self._source.num_classes
        while True:
            indices = self._substitute(place, scheduled)
            try:
                encoded, labels = self._source.read(indices)
            except (ValueError, OSError):
                if not self._put_away_unreadable(indices, step):
                    raise
                continue
            wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
            for row in wrong:
                reason = f"its label {labels[row]} is not in [0, {num_classes}); is the class count right?"
                self._put_away(indices[row], reason, step)
            if not len(wrong):
                break
        used = uniforms_before(self._augmentation)
        parameters = self._augmentation.parameters(uniforms[:, _FLIP + 1 : used])
        flips = uniforms[:, _FLIP] < 0.5
        landmarks = self._moved(indices, parameters, flips) if self._landmarks else None
        if self._augmentation.flip:
            parameters[FLIP] = flips.astype(np.int32)
        return EncodedBatch(
            encoded,
            labels,
            indices,
            uniforms[:, used:],
            parameters=parameters,
            step=step,
            landmarks=landmarks,
        )

    def _moved(self, indices: np.ndarray, parameters: dict[str, np.ndarray], flips: np.ndarray) -> np.ndarray:
        """The landmarks of these images, where the augmentation and the mirror take them."""
        assert self._landmarks is not None
        landmarks = self._landmarks(indices)
        if self._augmentation.move:
            landmarks = self._augmentation.move(landmarks, self._image_size, **parameters)
        if self._augmentation.flip:
            landmarks = np.where(flips[:, None, None], mirrored(torch.from_numpy(landmarks)).numpy(), landmarks)
        return landmarks

    def _place(self, step: int) -> tuple[int, int, int, int]:
        """Epoch, step in it, share and number of shares: the schedule's place of this rank's batch ``step``."""
        step, part = divmod(step, self._accumulate)
        share, shares = part * self._world_size + self._rank, self._world_size * self._accumulate
        return *divmod(step, self._schedule.steps_per_epoch), share, shares

    def _substitute(self, place: tuple[int, int, int, int], scheduled: np.ndarray) -> np.ndarray:
        """The indices with substitutes for the samples known as bad, by a rule that any number of ranks shares.

        A substitute that is bad itself, known or not, is replaced in turn, so that who found what, and when, does not
        matter.
        """
        if not self._quarantine:
            return scheduled
        indices = scheduled.copy()
        epoch, positions = place[0], self._schedule.positions(*place[1:])
        for row, index in enumerate(scheduled.tolist()):
            attempt = 0
            while index in self._quarantine:
                index = self._schedule.substitute(epoch, int(positions[row]), attempt)
                attempt += 1
            indices[row] = index
        return indices

    def _put_away(self, index: np.integer, reason: str, step: int) -> None:
        self._quarantine.add(int(index), reason, step // self._accumulate)

    def _put_away_unreadable(self, indices: np.ndarray, step: int) -> bool:
        """Try the samples one by one; whether a bad one was found."""
        found = False
        for row, index in enumerate(indices):
            try:
                self._source.read(indices[row : row + 1])
            except (ValueError, OSError) as error:
                self._put_away(index, str(error), step)
                found = True
        return found
