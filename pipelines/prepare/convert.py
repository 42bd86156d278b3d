"""Any source written as RecordIO or as WebDataset shards, its identities as the classes 0, 1, …

Beside the images come ``identities.json``, the names of the classes, ``left_out.jsonl``, the images that could not be
taken over, if there are any, and ``landmarks.npy`` where landmarks are given. Images are copied as they are unless a
transform changes them.
"""

import hashlib
import io
import itertools
import json
import operator
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from pipelines.common.errors import UserError, unknown
from pipelines.common.files import naming, replacing, save_array
from pipelines.common.formats import image_suffix
from pipelines.common.progress import with_progress
from pipelines.loading.permutation import ROUNDS, permute
from pipelines.prepare.landmarks import FILE as LANDMARKS
from pipelines.prepare.output import complete
from pipelines.prepare.reading import ReadImage, Transform, read_all, read_leniently
from pipelines.sources.identities import write_identities
from pipelines.sources.recordio import LABEL_LIMIT, IRHeader, pack
from pipelines.sources.recordio_writer import RecordWriter, write_dataset
from pipelines.sources.source import Source, all_labels

FORMS = ("recordio", "webdataset")
LEFT_OUT = "left_out.jsonl"
SHARD_SIZE = 10_000  # images
_DEFAULT_SIDE = 112  # of the images, in pixels, where it cannot be read off the first one
_SAMPLE = 64  # images by which a data set is known again


@dataclass(frozen=True)
class Written:
    identities: int
    images: int
    left_out: int


def convert(
    source: Source,
    out: str | Path,
    *,
    form: str = "recordio",
    indices: np.ndarray | None = None,
    shuffle: int | None = None,
    transform: Transform | None = None,
    shard_size: int = SHARD_SIZE,
    threads: int | None = None,
    landmarks: np.ndarray | None = None,
    data: Sequence[str | Path] = (),
) -> Written:
    """Write the images ``indices`` of ``source`` (default: all) as the folder ``out``.

    RecordIO is in insightface's layout, sorted by class; but with ``shuffle``, the key of a permutation of the images,
    and where there are more records than that layout can number (2^24), it is in im2rec's. Shards hold ``shard_size``
    images. An identity without an image gets no class. In im2rec's layout and in shards, one whose images turn out to
    be unreadable keeps its class, because classes are numbered before images are read. An interrupted run can be
    started again; the shards that it finished are kept if it was of the same images, as far as ``data``, the paths that
    ``source`` was opened from, its labels and a sample of the images tell.

    ``landmarks``, float32 (len(source), 5, 2), whose rows a transform may set, are written for RecordIO: those of the
    images in it, in its order.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if shard_size < 1:
        raise UserError(f"shards cannot hold {shard_size} images")
    plan = _plan(source, indices, shuffle)
    job = {
        "form": form,
        "transform": repr(transform),
        "shard_size": shard_size,
        "plan": hashlib.blake2b(plan.order.tobytes() + plan.classes.tobytes()).hexdigest(),
        "names": hashlib.blake2b("\n".join(plan.names).encode(errors="surrogatepass")).hexdigest(),
        "data": [*map(os.path.abspath, data), source.fingerprint()],
    }
    with complete(out, job, _sample(source, plan.order)) as folder:
        left_out = folder / LEFT_OUT
        if form == "recordio":
            left_out.unlink(missing_ok=True)
        with naming(left_out), left_out.open("a") as log:
            log.write("\n")  # a killed run may have left half a line
            writing = _Writing(source, plan, folder, log, transform, threads, np.zeros(len(plan.names), bool), [])
            if form == "webdataset":
                names = writing.write_shards(shard_size)
            elif shuffle is None and len(plan.order) + len(plan.names) + 1 <= LABEL_LIMIT:
                names = writing.write_sorted()
            else:
                names = writing.write_records()
        lines = _lines(left_out)
        for index in lines.keys() & writing.taken:
            del lines[index]  # it was unreadable when its shard was begun before
        for index in plan.considered[plan.damaged].tolist():
            lines[index] = _line(source, index, "no label: it is damaged, negative or taken away")
        left_out.write_text("".join(lines.values())) if lines else left_out.unlink()
        write_identities(folder, names)
        if landmarks is not None:
            assert form == "recordio"
            save_array(folder / LANDMARKS, landmarks[writing.taken])
        written = len(plan.considered) - len(lines)
        if not written:
            shutil.rmtree(folder, ignore_errors=True)  # there is nothing to go on with
            raise UserError(f"no image could be read; the first: {next(iter(lines.values())).strip()}")
    return Written(len(names), written, len(lines))


def _sample(source: Source, indices: np.ndarray) -> dict[str, str]:
    """Digests of some images by their numbers, of those that can be read.

    What a source knows without reading images may be no more than labels; and what lies at a path may have been made
    anew.
    """
    some = np.unique(indices[np.linspace(0, len(indices) - 1, _SAMPLE).astype(np.int64)])
    readable = (image for image in read_leniently(source, some) if not image.reason)
    return {str(image.index): hashlib.blake2b(bytes(image.encoded)).hexdigest() for image in readable}


@dataclass(frozen=True)
class _Plan:
    considered: np.ndarray  # int64, the images asked for
    damaged: np.ndarray  # bool, which of them have no label
    order: np.ndarray  # int64 (n,), indices of the others in the order in which they are written
    classes: np.ndarray  # int64 (n,), their classes
    names: list[str]


def _plan(source: Source, indices: np.ndarray | None, shuffle: int | None) -> _Plan:
    considered = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    labels = all_labels(source, considered)
    damaged = labels < 0
    order = considered[~damaged]
    if not len(order):
        raise UserError("there are no images to write")
    present, classes = np.unique(labels[~damaged], return_inverse=True)
    if shuffle is None:
        positions = np.argsort(classes, kind="stable")
    else:
        keys = np.random.Philox(key=shuffle).random_raw(ROUNDS)
        positions = permute(np.arange(len(order)), len(order), keys)
    names = [source.identity(label) for label in present.tolist()]
    return _Plan(considered, damaged, order[positions], classes[positions], names)


@dataclass(frozen=True)
class _Writing:
    source: Source
    plan: _Plan
    folder: Path
    log: TextIO
    transform: Transform | None
    threads: int | None
    seen: np.ndarray  # bool (classes,), of which a good image has come
    taken: list[int]  # the indices of the good images, in order

    def write_sorted(self) -> list[str]:
        """Insightface's layout. Returns the names of the classes, which are those that have a good image."""
        side, good = _side(self._good())
        by_class = itertools.groupby(good, key=operator.itemgetter(0))
        write_dataset(self.folder, ((image.encoded for _, image in images) for _, images in by_class), image_size=side)
        return [name for name, seen in zip(self.plan.names, self.seen.tolist()) if seen]

    def write_records(self) -> list[str]:
        """im2rec's layout."""
        side, good = _side(self._good())
        with replacing(self.folder / "property") as property_, RecordWriter(self.folder / "train.rec") as writer:
            for key, (label, image) in enumerate(good):
                writer.write(key, pack(IRHeader(0, label, key), image.encoded))
            property_.write_text(f"{len(self.plan.names)},{side},{side}")
        return self.plan.names

    def write_shards(self, size: int) -> list[str]:
        every = np.arange(len(self.plan.order))
        pieces = np.split(every, every[size::size])
        shards = {self.folder / f"train-{number:06d}.tar": positions for number, positions in enumerate(pieces)}
        missing = {shard: positions for shard, positions in shards.items() if not shard.exists()}
        images = self._images(np.concatenate([every[:0], *missing.values()]))
        for shard, positions in missing.items():
            with replacing(shard) as temporary, tarfile.open(temporary, "w") as archive:
                for position, (label, image) in zip(positions, images):  # the positions end first: none is lost
                    if not image.reason:
                        _add(archive, f"{position:09d}{image_suffix(image.encoded)}", bytes(image.encoded))
                        _add(archive, f"{position:09d}.cls", b"%d" % label)
                self.log.flush()
        return self.plan.names

    def _good(self) -> Iterator[tuple[int, ReadImage]]:
        """Class and image of the good ones, in order."""
        everything = self._images(np.arange(len(self.plan.order)))
        return ((label, image) for label, image in everything if not image.reason)

    def _images(self, positions: np.ndarray) -> Iterator[tuple[int, ReadImage]]:
        """Class and image at these positions of the order; the bad ones go to the log, too."""
        order = self.plan.order[positions]
        chunks = read_all(self.source, order, transform=self.transform, threads=self.threads)
        text = f"writing {self.folder.name.removeprefix('.').removesuffix('.partial')}"
        images = itertools.chain.from_iterable(with_progress(chunks, text, len(order)))
        for image, label in zip(images, map(int, self.plan.classes[positions])):
            if image.reason:
                self.log.write(_line(self.source, image.index, image.reason))
            else:
                self.seen[label] = True
                self.taken.append(int(image.index))
            yield label, image


def _line(source: Source, index: int, reason: str) -> str:
    return json.dumps({"index": int(index), "image": source.describe(int(index)), "reason": reason}) + "\n"


def _lines(path: Path) -> dict[int, str]:
    """The lines of ``left_out.jsonl`` by the image's number: a shard that is begun twice tells of an image twice."""
    lines = {}
    for line in path.read_text().splitlines(keepends=True):
        with suppress(ValueError):  # empty, or half a line of a shard that was begun again
            lines[json.loads(line)["index"]] = line
    return lines


def _side(good: Iterator[tuple[int, ReadImage]]) -> tuple[int, Iterator[tuple[int, ReadImage]]]:
    """The height of the first image, for ``property``, and all images."""
    first = next(good, None)
    if first is None:
        return _DEFAULT_SIDE, iter(())
    try:
        with Image.open(io.BytesIO(bytes(first[1].encoded))) as image:
            side = image.height
    except Exception:  # Pillow's decoders raise almost any class; that the image is damaged is for ``check`` to say
        side = _DEFAULT_SIDE
    return side, itertools.chain([first], good)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
