"""Mutated files of every format, opened and read; one process goes through many.

``python -m tests.faults.mutations KIND FIRST LAST LOG`` prints how many of them were accepted and refused, as JSON.

Each case is a function of (format, number), so that one can be done again alone. Before it begins a case the process
writes its number to the file ``log``, for those who want to know at which one it died.
"""

import json
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.prepare.pairs import read_pairs
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin, write_bin
from pipelines.sources.identities import write_identities
from pipelines.sources.memory import MemorySource
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_writer import write_dataset
from tests.pipelines.mutation import mutate
from tests.pipelines.photos import encoded, jpeg, picture, write_tar

GROWTH = 1 << 30  # bytes beyond what is in use at the start
IMAGES = [jpeg(seed, 32) for seed in range(9)]
BATCH = 16  # images that are decoded together, half of them mutated


def read(source):
    """All that can be asked of a source; an image that cannot be read is no refusal of the data set."""
    indices = np.arange(len(source))
    source.prefetch(indices)
    source.labels(indices)
    assert 0 <= source.fingerprint() < 1 << 32
    for index in indices:
        assert source.describe(int(index))
        try:
            (image,), (label,) = source.read(indices[index : index + 1])
            assert image.dtype == np.uint8
            source.identity(int(label))
        except (UserError, OSError) as error:
            assert str(error)
    try:
        source.read(indices)
    except (UserError, OSError) as error:
        assert str(error)


def opened(name):
    return lambda folder: read(open_source(folder / name))


def rec(folder):
    write_dataset(folder, [IMAGES[:3], IMAGES[3:4], IMAGES[4:]])
    write_identities(folder, ["a", "b", "c"])


def rec_without_property(folder):
    rec(folder)
    (folder / "property").unlink()


def shard(folder):
    members = [(f"s/{n}.jpg", image) for n, image in enumerate(IMAGES)] + [(f"s/{n}.cls", b"%d" % n) for n in range(9)]
    write_tar(folder / "a.tar", dict(members))


def shard_of_folders(folder):
    write_tar(folder / "a.tar", {f"p{n % 3}/{n}.jpg": image for n, image in enumerate(IMAGES)})


def parquet(folder):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [{"bytes": image, "path": "x"} for image in IMAGES], "label": [0, 1, 2] * 3})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=4)


def arrow(folder):
    import pyarrow

    images = [{"bytes": image, "path": None} for image in IMAGES]
    table = pyarrow.table({"name": [f"n{n}" for n in range(9)], "label": list("abcabcabc"), "image": images})
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def lmdb(folder, values=lambda n, image: (b"%06d" % n, pack(IRHeader(0, n % 3, n), image))):
    import lmdb

    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for number, image in enumerate(IMAGES):
            transaction.put(*values(number, image))
            transaction.put(b"__%d" % number, bytes(20 * number))


def lmdb_of_pairs(folder):
    import msgpack

    lmdb(folder, lambda n, image: (b"%d" % n, msgpack.packb((image, n % 3))))


def lmdb_of_folders(folder):
    lmdb(folder, lambda n, image: (b"p%d/%d.jpg" % (n % 3, n), image))


def listed(folder):
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    (folder / "a.lst").write_text("".join(f"{n}\t{n % 3}.0\t{n}.jpg\n" for n in range(9)))
    (folder / "b.txt").write_text("".join(f"{n}.jpg {n % 3}\n" for n in range(9)))


def pairs_list(folder):
    (folder / "pairs.txt").write_text("10\t300\n" + "".join(f"ann\t{n}\t{n + 1}\nann\t{n}\tbob\t3\n" for n in range(9)))


def bins(folder):
    write_bin(folder / "a.bin", IMAGES[:8], np.arange(4) % 2 == 0)


def images(folder):
    kinds = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP"}
    for suffix, form in kinds.items():
        (folder / f"a.{suffix}").write_bytes(encoded(picture(1, 32), form))


def decode(folder):
    """Mutated files among sound ones, through the loader: several in a batch, which is what ended processes."""
    import torch

    from pipelines.loading.loader import Loader

    files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".npz"]
    batch = [files[row % len(files)] if row % 2 else IMAGES[0] for row in range(BATCH)]
    loader = Loader(
        MemorySource(batch, np.zeros(BATCH, np.int64)), batch_size=BATCH, seed=0, image_size=32, max_bad_fraction=1
    )
    try:
        assert torch.isfinite(next(loader).images).all()
        if loader.replaced:
            raise UserError("an image was refused")
    finally:
        loader.close()


# What makes the sound files, which of them are mutated, what is done with them.
FORMATS: dict[str, tuple[Callable[[Path], None], list[str], Callable[[Path], object]]] = {
    "rec": (rec, ["train.rec", "train.idx", "property", "identities.json"], opened("")),
    "rec, no property": (rec_without_property, ["train.rec", "train.idx"], opened("")),
    "rec index cache": (rec, ["train.cache.npz"], opened("")),
    "shard": (shard, ["a.tar"], opened("")),
    "shard of folders": (shard_of_folders, ["a.tar"], opened("")),
    "shard index cache": (shard, ["a.tar.index.npz"], opened("")),
    "parquet": (parquet, ["a.parquet"], opened("")),
    "arrow": (arrow, ["data-00000-of-00001.arrow", "state.json"], opened("")),
    "lmdb": (lmdb, ["data.mdb"], opened("")),
    "lmdb of pairs": (lmdb_of_pairs, ["data.mdb"], opened("")),
    "lmdb index cache": (lmdb, ["data.mdb.index.npz"], opened("")),
    "lmdb of folders": (lmdb_of_folders, ["data.mdb"], opened("")),
    "list of im2rec": (listed, ["a.lst"], opened("a.lst")),
    "list": (listed, ["b.txt"], opened("b.txt")),
    "list of pairs": (pairs_list, ["pairs.txt"], lambda folder: read_pairs(folder / "pairs.txt")),
    "bin": (bins, ["a.bin"], lambda folder: read_bin(folder / "a.bin")),
    "images": (images, ["a.jpg", "a.png", "a.bmp", "a.webp"], decode),
}


def run(kind: str, numbers: range, log: Path) -> dict[str, int]:
    """How many cases were accepted and how many refused; anything else is raised."""
    make, names, use = FORMATS[kind]
    counts = {"accepted": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as scratch, log.open("wb", buffering=0) as progress:
        sound = Path(scratch) / "sound"
        sound.mkdir()
        make(sound)
        use(sound)  # writes the caches, loads what is to be loaded, and must be accepted
        allow(GROWTH if kind != "images" else None)
        for number in numbers:
            os.pwrite(progress.fileno(), b"%12d" % number, 0)
            folder = Path(scratch) / "case"
            damage(sound, folder, names, np.random.default_rng([number, len(kind)]))
            try:
                use(folder)
                counts["accepted"] += 1
            except (UserError, OSError) as error:
                assert str(error)
                counts["refused"] += 1
            shutil.rmtree(folder)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak < 2 << 20, f"{peak} kB of memory"
    return counts


def damage(sound: Path, folder: Path, names: list[str], generator: np.random.Generator) -> None:
    """A copy of the files with one or two of ``names`` mutated; a cache among them passes for that of these files."""
    shutil.copytree(sound, folder)
    caches = [name for name in names if name.endswith(".npz")]
    for name in generator.choice(names, generator.integers(1, 3)):
        (folder / name).write_bytes(mutate((folder / name).read_bytes(), generator))
    for cache in [] if caches else folder.glob("*.npz"):
        cache.unlink()


def allow(growth: int | None) -> None:
    if growth:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + growth, used + growth))


def go_through(kind: str, numbers: range, log: Path) -> dict[str, int]:
    """`run` in a process of its own, which prints nothing but, where a case fails, its number."""
    warnings.simplefilter("ignore")
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what decoders print
    try:
        return run(kind, numbers, log)
    except BaseException:
        print("case", log.read_text(), file=sys.stderr)
        raise


def main() -> None:
    kind, first, last, log = sys.argv[1:]
    output = os.dup(1)
    counts = go_through(kind, range(int(first), int(last)), Path(log))
    os.write(output, json.dumps(counts).encode())


if __name__ == "__main__":
    main()
