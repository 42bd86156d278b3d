"""Every image of a data set decoded once, and what is wrong with it."""

import json
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.common.errors import UserError
from pipelines.common.files import replacing
from pipelines.common.header import Header, HeaderReader
from pipelines.common.progress import with_progress
from pipelines.loading.admission import STAND_IN
from pipelines.loading.decoder import Decoder, UndecodableError
from pipelines.prepare.duplicates import byte_hash, groups_of, near_pairs, picture_hashes
from pipelines.prepare.reading import CHUNK, ReadImage, read_all
from pipelines.sources.source import Source, all_labels

ERRORS = ("unreadable", "label_out_of_range")  # what training stumbles over
IMAGE_REMARKS = ("wrong_size", "grey", "duplicate", "near_duplicate")
IDENTITY_REMARKS = ("empty_identity", "tiny_identity")
KINDS = ERRORS + IMAGE_REMARKS + IDENTITY_REMARKS
_AHEAD = 6  # batches that are decoded at a time
_SIDE = 112  # pixels: what images are decoded to; those of this very size need no resizing
_STRIDE = 4  # of the pixels that are compared: all of them would cost more than the decoding
_NEAR = 4  # bits of 128 in which the perceptual hashes of near duplicates may differ
_GREY = 1.5  # greatest mean distance between an image's colour channels, in levels of 255, that looks grey


@dataclass
class Report:
    """``problems`` maps each of KINDS to {index of the image, or class: what there is to say}.

    ``missing`` images are not among the ``images``: the files announce them and do not hold them; ``shortage`` says
    which file is short.
    """

    images: int
    identities: int
    missing: int = 0
    shortage: str = ""
    problems: dict[str, dict[int, str]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    @property
    def sound(self) -> bool:
        """Nothing in the data set that training would stumble over: it counts missing images as bad ones."""
        return not self.missing and not any(self.problems[kind] for kind in ERRORS)

    def bad_images(self, *kinds: str) -> np.ndarray:
        """Indices of the images with problems of these kinds, ERRORS or IMAGE_REMARKS, int64, ascending."""
        return np.array(sorted({index for kind in kinds for index in self.problems[kind]}), np.int64)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and a list of [index or class, text] for each kind."""
        return {
            "images": self.images,
            "identities": self.identities,
            "missing": self.missing,
            "shortage": self.shortage,
            "counts": {kind: len(found) for kind, found in self.problems.items()},
            "problems": {kind: sorted(found.items()) for kind, found in self.problems.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write `as_dict` as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1))


def check(source: Source, *, image_size: int | None = None, tiny: int = 2, threads: int | None = None) -> Report:
    """Look at every image.

    ``image_size``: what images should measure (default: what the first readable one does). ``tiny``: identities with
    fewer images are named. The first image of a group of duplicates is not reported.
    """
    checker = _Checker(source, image_size, threads or len(os.sched_getaffinity(0)))
    checker.decode()
    checker.compare()
    checker.count_identities(tiny)
    return checker.report


class _Checker:
    def __init__(self, source: Source, image_size: int | None, threads: int) -> None:
        size = len(source)
        self.source = source
        self.size = (image_size, image_size) if image_size else None
        self.threads = threads
        self.headers = HeaderReader()
        self.report = Report(size, source.num_classes, source.missing, source.shortage)
        self.bytes = np.zeros(size, np.int64)
        self.pictures = np.zeros((size, 2), np.uint64)
        self.good = np.zeros(size, bool)
        self.counts = np.zeros(source.num_classes, np.int64)

    def decode(self) -> None:
        """Look at each image, its header, its pixels and its label."""
        decoder = Decoder(batch_size=CHUNK, image_size=_SIDE, device=torch.device("cpu"), threads=self.threads)
        ahead: deque[list[tuple[ReadImage, Header]]] = deque()
        chunks = read_all(self.source, np.arange(len(self.source)), threads=1)
        try:
            for chunk in with_progress(chunks, "checking", len(self.source)):
                if batch := self._with_headers(chunk):
                    decoder.submit([image.encoded for image, _ in batch])
                    ahead.append(batch)
                if len(ahead) == _AHEAD:
                    self._judge(decoder, ahead.popleft())
            while ahead:
                self._judge(decoder, ahead.popleft())
        finally:
            decoder.clear()

    def compare(self) -> None:
        """Find the duplicates among the good images."""
        good = np.flatnonzero(self.good)
        describe = self.source.describe
        labels = all_labels(self.source, np.arange(len(self.source)))

        def told(first: int, second: int) -> str:
            return describe(first) + (" of another identity" if labels[first] != labels[second] else "")

        for group in groups_of(self.bytes[good]):
            first, *others = good[group].tolist()
            for index in others:
                self._add("duplicate", index, f"has the bytes of {told(first, index)}")
        for first, second in good[near_pairs(self.pictures[good], _NEAR)].tolist():
            if self.bytes[first] != self.bytes[second]:
                self._add("near_duplicate", second, f"looks like {told(first, second)}")

    def count_identities(self, tiny: int) -> None:
        for label in np.flatnonzero(self.counts == 0).tolist():
            self.report.problems["empty_identity"][label] = f"{self.source.identity(label)}: no image"
        for label in np.flatnonzero((self.counts > 0) & (self.counts < tiny)).tolist():
            self.report.problems["tiny_identity"][label] = f"{self.source.identity(label)}: {self.counts[label]}"

    def _with_headers(self, images: list[ReadImage]) -> list[tuple[ReadImage, Header]]:
        """The images that might be good."""
        might = []
        for image in images:
            try:
                if image.reason:
                    raise UserError(image.reason)
                encoded = bytes(image.encoded)
                header = self.headers.read(encoded)
            except ValueError as error:
                self._add("unreadable", image.index, str(error))
                continue
            self.bytes[image.index] = byte_hash(encoded)
            self.size = self.size or header.size
            might.append((image, header))
        return might

    def _judge(self, decoder: Decoder, batch: list[tuple[ReadImage, Header]]) -> None:
        """Take out the oldest batch that is being decoded, which is ``batch``."""
        bad: dict[int, str] = {}
        while True:
            try:
                (pixels,) = decoder.result()
                break
            except UndecodableError as error:
                bad |= error.reasons
                decoder.amend([STAND_IN if row in bad else image.encoded for row, (image, _) in enumerate(batch)])
        rows = np.ascontiguousarray(pixels.numpy()[:, ::_STRIDE])  # quicker than to pick single pixels from all of them
        red, green, blue = (np.ascontiguousarray(rows[:, :, ::_STRIDE, channel]) for channel in range(3))
        hashes = picture_hashes(green)
        grey = _colour_spread(red, green, blue) <= _GREY
        indices = np.array([image.index for image, _ in batch])
        labels = self.source.labels(indices)
        known = (labels >= 0) & (labels < len(self.counts))
        good = np.ones(len(batch), bool)
        for row, reason in bad.items():
            good[row] = False
            self._add("unreadable", batch[row][0].index, reason)
        self.good[indices] = good
        self.pictures[indices] = hashes
        np.add.at(self.counts, labels[good & known], 1)
        for index in indices[good & ~known].tolist():
            self._add("label_out_of_range", index, f"not in [0, {len(self.counts)})")
        grey |= np.array([header.channels for _, header in batch]) <= 2
        for index in indices[good & grey].tolist():
            self._add("grey", index, "no colours")
        for row, (image, header) in enumerate(batch):
            if header.size != self.size and good[row]:
                self._add("wrong_size", image.index, f"{header.size[0]} x {header.size[1]} pixels")

    def _add(self, kind: str, index: int, reason: str) -> None:
        self.report.problems[kind].setdefault(index, f"{self.source.describe(index)}: {reason}")


def _colour_spread(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Mean distance between the greatest and the least channel, each uint8 (b, h, w): float64 (b,)."""
    greatest = np.maximum(np.maximum(red, green), blue)
    return (greatest - np.minimum(np.minimum(red, green), blue)).mean(axis=(1, 2))
