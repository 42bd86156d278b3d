"""Images a second from each format that is read, as shares of RecordIO's: ``python -m benchmarks.formats``.

The images of one data set are written in every format. A format and RecordIO take turns, so that a noisy machine is
noisy for both: what is given are medians of the rounds, and of the ratios within a round. Once the loader makes
batches of them (decode, flip, uint8), once the source is only read. Every epoch opens the files anew, so that what a
source keeps of the last one is no gain. Reading is from the page cache: a disk is slower, and not the format's fault.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from benchmarks.data import Stream, race
from benchmarks.results import Row
from benchmarks.synthetic import synthetic_data
from pipelines.common.command import at_least, run
from pipelines.common.errors import UserError
from pipelines.common.formats import image_suffix
from pipelines.loading.loader import Loader
from pipelines.loading.schedule import Schedule
from pipelines.prepare.convert import convert
from pipelines.sources import open_source
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.source import Source

RECORDIO = "RecordIO"
PARQUET = "Parquet, shuffle block"
_PACKAGES = ("lmdb", "msgpack", "pyarrow")
_MAP = 1 << 40  # bytes that an LMDB may grow to; the file is as large as what is in it
_ROW_GROUP = 100  # images, as Hugging Face's datasets writes them
_SHARD = 5000  # images in an Arrow file


def measure_formats(
    source: Source, folder: Path, *, batch_size: int = 128, cores: int = 2, rounds: int = 7, seconds: float = 1.0
) -> Iterator[Row]:
    """Rows {name, images_per_second, of_recordio, reading_cpu_us, reading_of_recordio}; ``folder`` takes the files.

    ``reading_cpu_us`` is the processor time an image of reading alone, ``reading_of_recordio`` the share of RecordIO's
    images a second that reading alone reaches.
    """
    files = write_all(source, folder)
    cpu = torch.device("cpu")
    for name, path in files.items():
        shuffle = "block" if name == PARQUET else "global"
        pair = {RECORDIO: (files[RECORDIO], "global"), name: (path, shuffle)}
        loading = race(
            {each: _batches(*where, batch_size=batch_size, cores=cores) for each, where in pair.items()},
            *(cpu, rounds, seconds),
        )
        reading = race(
            {each: _read(*where, batch_size=batch_size) for each, where in pair.items()}, cpu, rounds, seconds / 3
        )
        ratios = [
            statistics.median(own.speed / theirs.speed for own, theirs in zip(turns[name], turns[RECORDIO]))
            for turns in (loading, reading)
        ]
        yield {
            "name": name,
            "images_per_second": statistics.median(turn.speed for turn in loading[name]),
            "of_recordio": ratios[0],
            "reading_cpu_us": statistics.median(turn.cpu_us for turn in reading[name]),
            "reading_of_recordio": ratios[1],
        }


def write_all(source: Source, folder: Path) -> dict[str, Path]:
    """Write the images of ``source`` in each format; what they are to be opened by, RecordIO first."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"writing all formats needs packages: pip install {' '.join(missing)}")
    convert(source, folder / "recordio")
    convert(source, folder / "webdataset", form="webdataset")
    images = open_source(folder / "recordio")
    return {
        RECORDIO: folder / "recordio",
        "image folder": _write_folder(images, folder / "folder"),
        "LMDB, image records": _write_lmdb(images, folder / "records.lmdb", _record),
        "LMDB, pairs in MessagePack": _write_lmdb(images, folder / "pairs.lmdb", _pair),
        "WebDataset": folder / "webdataset",
        "Hugging Face, save_to_disk": _write_saved(images, folder / "saved"),
        PARQUET: _write_parquet(images, folder / "train.parquet"),
    }


def _each(source: Source) -> Iterator[tuple[int, bytes, int]]:
    """Number, encoded image and label of all images."""
    for index in range(len(source)):
        (image,), labels = source.read(np.array([index]))
        yield index, image.tobytes(), int(labels[0])


def _write_folder(source: Source, folder: Path) -> Path:
    for index, image, label in _each(source):
        identity = folder / f"{label:07d}"
        identity.mkdir(parents=True, exist_ok=True)
        (identity / f"{index:08d}{image_suffix(image)}").write_bytes(image)
    return folder


def _record(index: int, image: bytes, label: int) -> bytes:
    return pack(IRHeader(0, label, index), image)


def _pair(index: int, image: bytes, label: int) -> bytes:
    import msgpack

    packed: bytes = msgpack.packb((image, label))
    return packed


def _write_lmdb(source: Source, path: Path, value: Callable[[int, bytes, int], bytes]) -> Path:
    import lmdb

    with (
        lmdb.open(str(path), subdir=False, map_size=_MAP, lock=False) as database,
        database.begin(write=True) as writer,
    ):
        for each in _each(source):
            writer.put(b"%d" % each[0], value(*each))
    return path


def _table(source: Source) -> Any:
    """Images and labels as Hugging Face's datasets has them."""
    import pyarrow

    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    rows = [({"bytes": image, "path": None}, label) for _, image, label in _each(source)]
    return pyarrow.table({"image": pyarrow.array([row[0] for row in rows], kind), "label": [row[1] for row in rows]})


def _write_parquet(source: Source, path: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(_table(source), path, row_group_size=_ROW_GROUP)
    return path


def _write_saved(source: Source, folder: Path) -> Path:
    import pyarrow

    table = _table(source)
    folder.mkdir()
    names: list[str] = []
    for begin in range(0, len(table), _SHARD):
        names.append(f"data-{len(names):05d}.arrow")
        with pyarrow.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(table.slice(begin, _SHARD), max_chunksize=1000)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def _batches(path: Path, shuffle: str, *, batch_size: int, cores: int) -> Stream:
    """Images of the loader, without end."""
    seed = 0
    while True:
        source = open_source(path)
        loader = Loader(source, batch_size=batch_size, seed=seed, shuffle=shuffle, dtype=torch.uint8, threads=cores)
        try:
            for _ in range(loader.steps_per_epoch):
                yield next(loader).images
        finally:
            loader.close()
        seed += 1


def _read(path: Path, shuffle: str, *, batch_size: int) -> Stream:
    """Encoded images in the order of the loader, without end."""
    epoch = 0
    while True:
        source = open_source(path)
        schedule = Schedule(len(source), batch_size, seed=0, shuffle=shuffle)
        for step in range(schedule.steps_per_epoch):
            yield source.read(schedule.slice(epoch, step)[0])[0]
        epoch += 1


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set whose images are written (default: the synthetic one)")
    parser.add_argument("--batch", type=at_least(1), default=128, help="images a batch")
    parser.add_argument("--cores", type=at_least(1), default=2, help="threads that decode")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="rounds of which the median is taken")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn of the loader")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file")
    parser.add_argument("--note", help="what else is to be said of the run, as that the machine was busy")
    options = parser.parse_args()
    rows: list[Row] = []
    note = {"note": options.note} if options.note else {}
    with tempfile.TemporaryDirectory() as folder:
        for row in measure_formats(
            open_source(options.data or synthetic_data()),
            Path(folder),
            batch_size=options.batch,
            cores=options.cores,
            rounds=options.rounds,
            seconds=options.seconds,
        ):
            rows.append(row)
            path = results.save("formats", rows, options.output, **note)  # what is measured is kept
    results.show(rows, f"formats, {options.cores} cores")
    print(path)


if __name__ == "__main__":
    run(main)
