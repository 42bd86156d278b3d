"""Files that shrink while they are read, and disks that fail: errors that name the file, never a signal."""

import errno
import multiprocessing
import os
import shutil

import numpy as np
import pytest

from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_writer import write_dataset
from tests.pipelines.photos import jpeg, write_tar

COUNT = 12
IMAGES = [jpeg(seed, 64) for seed in range(COUNT)]


def rec(folder):
    write_dataset(folder, [IMAGES])
    return folder / "train.rec"


def shard(folder):
    write_tar(folder / "a.tar", {f"x/{n:02d}.jpg": image for n, image in enumerate(IMAGES)})
    return folder / "a.tar"


def lmdb(folder):
    database = pytest.importorskip("lmdb")
    with database.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for number, image in enumerate(IMAGES):
            transaction.put(b"%03d" % number, pack(IRHeader(0, 0, number), image))
    return folder / "data.mdb"


def parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": IMAGES, "label": [0] * COUNT})
    writer.write_table(table, folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def arrow(folder):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"image": IMAGES, "label": [0] * COUNT})
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return folder / "a.arrow"


FORMATS = [rec, shard, lmdb, parquet, arrow]


def in_a_process(work, *args):
    """A signal ends that process, not the tests."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0


@pytest.mark.parametrize("make", FORMATS)
def test_a_file_that_shrinks(make, tmp_path):
    path = make(tmp_path)

    def work():
        source = open_source(path)
        os.truncate(path, path.stat().st_size // 2)
        read = 0
        for index in range(COUNT):
            try:
                (image,), _ = source.read(np.array([index]))
                read += bytes(image) in IMAGES
            except (ValueError, OSError) as error:
                assert str(path.name) in str(error)
            source.describe(index), source.labels(np.array([index])), source.prefetch(np.array([index]))
        assert 0 < read < COUNT
        with pytest.raises((ValueError, OSError), match=path.name):
            source.read(np.arange(COUNT))

    in_a_process(work)


@pytest.mark.parametrize("make", [rec, shard, lmdb, arrow])
def test_a_file_that_shrinks_under_the_loader(make, tmp_path):
    path = make(tmp_path)

    def work():
        source = open_source(path)
        loader = Loader(source, batch_size=4, seed=0, image_size=64, threads=1, max_bad_fraction=0.9)
        next(loader)
        os.truncate(path, path.stat().st_size // 2)
        for _ in range(9):
            assert len(next(loader).images) == 4
        assert loader.replaced > 0
        loader.close()

    in_a_process(work)


@pytest.mark.parametrize("make", [rec, shard, lmdb, arrow])
def test_a_disk_that_fails_is_an_error_of_those_images(make, tmp_path, monkeypatch):
    path = make(tmp_path)
    source = open_source(path)
    middle = path.read_bytes().index(IMAGES[5]) + 9
    reads = {"pread": os.pread, "preadv": os.preadv}

    def failing(name):
        def read(descriptor, what, begin):
            length = what if name == "pread" else len(what[0])
            if begin <= middle < begin + length:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return reads[name](descriptor, what, begin)

        return read

    for name in reads:
        monkeypatch.setattr(os, name, failing(name))
    failed = 0
    for index in range(COUNT):
        try:
            source.read(np.array([index]))
        except OSError as error:
            failed += 1
            assert error.errno == errno.EIO and path.name in str(error)
    assert failed == 1


def test_lmdb_cut_short_is_refused_before_it_is_read(tmp_path):
    path = lmdb(tmp_path)
    whole = path.stat().st_size
    for size in (whole - 1, whole // 2, 8192):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=rf"data\.mdb is cut short: it has {size} of \d+ bytes; copy it again"):
            open_source(tmp_path)
    os.truncate(path, 4000)
    with pytest.raises(ValueError, match=r"data\.mdb is no readable LMDB"):
        open_source(tmp_path)


def test_a_truncated_lmdb_of_a_report(shared, tmp_path):
    shutil.copy(shared / "cases" / "runs" / "truncated.mdb", tmp_path / "a.mdb")
    with pytest.raises(ValueError, match=r"a\.mdb is (cut short|no readable LMDB|damaged)"):
        open_source(tmp_path / "a.mdb")


def test_lmdb_as_its_library_reads_it(tmp_path):
    database = pytest.importorskip("lmdb")
    from pipelines.sources.lmdb_pages import entries
    from pipelines.sources.ranges import RangeReader

    generator = np.random.default_rng(0)
    with database.open(str(tmp_path), map_size=1 << 28) as environment:
        for _ in range(4):  # pages are freed and used again; branch pages on two levels; long and short values
            with environment.begin(write=True) as transaction:
                for number in generator.integers(0, 9000, 4000).tolist():
                    key = b"%06d" % number + b"k" * (number % 100)
                    transaction.put(key, generator.bytes(int(generator.choice([0, 5, 900, 2500, 9000]))))
                for number in generator.integers(0, 9000, 1000).tolist():
                    transaction.delete(b"%06d" % number + b"k" * (number % 100))
        with environment.begin() as transaction:
            expected = list(transaction.cursor())
    file = RangeReader(tmp_path / "data.mdb")
    assert [(key, file.read(begin, length).tobytes()) for key, begin, length in entries(file)] == expected
    with database.open(str(tmp_path / "empty"), subdir=False):
        pass
    assert list(entries(RangeReader(tmp_path / "empty"))) == []
