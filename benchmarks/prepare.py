"""Data sets of one's own, beside the usual ways and what limits them: ``python -m benchmarks.prepare``.

The ways run in turns within one process, each on all images, so that a noisy machine is noisy for all of them. A row
has the median of the rounds and the median of its ratios to the yardstick of its task in the same round: in speed, and
in the time of all cores that an image takes, which tells more on a machine that others use too.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import results
from benchmarks.measure import in_turns
from benchmarks.mxnet_compat import import_mxnet
from benchmarks.results import Row
from pipelines.common.command import run
from pipelines.loading.decoder import Decoder
from pipelines.prepare.check import check
from pipelines.prepare.convert import convert
from pipelines.prepare.encode import Reencode
from pipelines.prepare.reading import CHUNK
from pipelines.sources import open_source
from pipelines.sources.folder import FolderSource
from pipelines.sources.rec import RecordSource
from pipelines.sources.source import Source
from pipelines.synthetic.dataset import make_dataset

_SIDE = 112  # pixels of the images that are checked
_PHOTOGRAPH = 250  # pixels of what is resized to that, as in LFW
_QUALITY = 90
_AHEAD = 3  # batches that are decoded at a time

Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="data set of 112 x 112 JPEGs (default: faces that are drawn for it)")
    parser.add_argument("--images", type=int, default=16_000, help="images that are taken of it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each way")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for JSON and chart")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure_prepare(
            Path(scratch), options.data, images=options.images, threads=options.threads, rounds=options.rounds
        )
    results.show(rows, f"prepare, {options.threads} threads")
    path = results.save("prepare", rows, options.output)
    results.bar_chart(rows, "name", "of_yardstick", "speed in parts of the yardstick", path.with_suffix(".png"))
    print(path)


def measure_prepare(
    scratch: Path, data: Path | None = None, *, images: int = 16_000, threads: int = 2, rounds: int = 5
) -> list[Row]:
    """Rows {name, images_per_second, of_yardstick, cpu_microseconds, cpu_of_yardstick}, its yardstick first in a task.

    ``scratch`` is an empty folder, which is left to the caller to remove.
    """
    if data is None:
        data = scratch / "drawn"
        make_dataset(data, identities=max(images // 16, 2), images_per_identity=16, held_out=20)
    source = open_source(data)
    convert(source, scratch / "records", indices=np.arange(min(images, len(source))), threads=threads)
    records = RecordSource(scratch / "records" / "train.rec")
    folder = _write_folder(records, scratch / "folder")
    convert(records, scratch / "photographs", transform=Reencode(_PHOTOGRAPH), threads=threads)
    photographs = RecordSource(scratch / "photographs" / "train.rec")
    tasks: dict[str, dict[str, Way]] = {
        "check": {
            "DALI's decoding alone": lambda: _decode(records, threads),
            "prepare check": lambda: check(records, threads=threads),
        },
        f"resize {_PHOTOGRAPH} px to {_SIDE}": _encoding(photographs, scratch, _SIDE, threads),
        f"encode as quality {_QUALITY}": _encoding(records, scratch, None, threads),
        "folder to RecordIO": _writing(folder, scratch, threads),
    }
    return [
        row
        for task, ways in tasks.items()
        for row in _race({f"{task}: {name}": way for name, way in ways.items()}, len(records), rounds)
    ]


def _race(ways: dict[str, Way], images: int, rounds: int) -> list[Row]:
    with contextlib.redirect_stdout(io.StringIO()):  # the progress bars
        seconds, cpu = in_turns(ways, rounds, torch.device("cpu"))
    yardstick = next(iter(ways))
    return [
        {
            "name": name,
            "images_per_second": images / statistics.median(seconds[name]),
            "of_yardstick": _ratio(seconds[yardstick], seconds[name]),
            "cpu_microseconds": 1e6 * statistics.median(cpu[name]) / images,
            "cpu_of_yardstick": _ratio(cpu[yardstick], cpu[name]),
        }
        for name in ways
    ]


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours))


def _decode(source: Source, threads: int) -> None:
    """What check's decoder does, and nothing else."""
    decoder = Decoder(batch_size=CHUNK, image_size=_SIDE, device=torch.device("cpu"), threads=threads)
    for number, begin in enumerate(range(0, len(source), CHUNK)):
        indices = np.arange(begin, min(begin + CHUNK, len(source)))
        if number >= _AHEAD:
            decoder.result()
        decoder.submit(source.read(indices)[0])
    for _ in range(min(_AHEAD, -(-len(source) // CHUNK))):
        decoder.result()
    decoder.clear()


def _encoding(source: Source, scratch: Path, size: int | None, threads: int) -> dict[str, Way]:
    """Without OpenCV there is nothing to compare with."""
    ways: dict[str, Way] = {"prepare convert": lambda: _convert(source, scratch, threads, Reencode(size, _QUALITY))}
    try:
        import cv2
    except ImportError:
        return ways
    cv2.setNumThreads(0)

    def encode(index: int) -> bytes:
        (encoded,), _ = source.read(np.array([index]))
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        if size:
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()

    def pool() -> None:
        """A pool of threads, whose results are dropped."""
        with ThreadPoolExecutor(threads) as executor:
            ahead: deque[Future[bytes]] = deque()
            for index in range(len(source)):
                ahead.append(executor.submit(encode, index))
                if len(ahead) == 4 * CHUNK:
                    ahead.popleft().result()
            for future in ahead:
                future.result()

    return {"cv2 in threads": pool, **ways}


def _writing(folder: Path, scratch: Path, threads: int) -> dict[str, Way]:
    def mxnet_writer() -> None:
        """As im2rec's single process does with ``--pass-through``."""
        recordio = import_mxnet().recordio
        writer = recordio.MXIndexedRecordIO(str(scratch / "mxnet.idx"), str(scratch / "mxnet.rec"), "w")
        for key, (label, path) in enumerate(_listed(folder)):
            with open(path, "rb") as file:  # noqa: PTH123  as quick as it goes
                writer.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), file.read()))
        writer.close()

    def floor() -> None:
        """All files read, one written, in one thread: what the file system and copying alone cost."""
        with (scratch / "floor").open("wb") as out:
            for _, path in _listed(folder):
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                    out.write(file.read())

    return {
        "mxnet's writer": mxnet_writer,
        "prepare convert": lambda: _convert(FolderSource(folder), scratch, threads),
        "read all, write one (the floor)": floor,
    }


def _listed(folder: Path) -> list[tuple[int, str]]:
    """(label, path) of all images."""
    people = [person.path for person in sorted(os.scandir(folder), key=lambda entry: entry.name)]
    return [(label, entry.path) for label, person in enumerate(people) for entry in os.scandir(person)]


def _convert(source: Source, scratch: Path, threads: int, transform: Reencode | None = None) -> None:
    """To a folder that is gone at the end."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        convert(source, Path(out) / "out", transform=transform, threads=threads)


def _write_folder(source: Source, root: Path) -> Path:
    for begin in range(0, len(source), CHUNK):
        indices = np.arange(begin, min(begin + CHUNK, len(source)))
        for index, image, label in zip(indices, *source.read(indices)):
            (root / f"{label:06d}").mkdir(parents=True, exist_ok=True)
            (root / f"{label:06d}" / f"{index:08d}.jpg").write_bytes(image.data)
    return root


if __name__ == "__main__":
    run(main)
