"""How many row groups of Parquet files are kept."""

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources import parquet as module


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Row groups of 4 images of 1000 bytes."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [b"\xff\xd8\xff" + bytes([n]) * 997 for n in range(40)]
    table = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": list(range(40))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    monkeypatch.setattr(module, "_KEPT", 13_000, raising=False)  # three of them, with the offsets of their images
    return open_source(tmp_path)


@pytest.fixture
def reads(source, monkeypatch):
    """The row groups that are read, in order."""
    found, original = [], source._files[0].read_row_group

    class File:
        def read_row_group(self, group, **options):
            found.append(group)
            return original(group, **options)

    monkeypatch.setattr(source, "_files", [File()])
    return found


def test_their_bytes_are_bounded(source, reads):
    for order, expected in (([0, 1, 2, 0, 1], [0, 1, 2]), ([3, 0, 1], [3]), ([2], [2]), ([0, 1, 2], [])):
        reads.clear()
        for group in order:
            images, labels = source.read(np.array([4 * group + 1]))
            assert bytes(images[0][3:]) == bytes([4 * group + 1]) * 997 and labels == [4 * group + 1]
        assert reads == expected, (order, expected)


def test_one_is_kept_however_large_it_is(source, reads, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 10, raising=False)
    for image in (0, 3, 1, 4, 5, 0):
        source.read(np.array([image]))
    assert reads == [0, 1, 0]


def test_the_memory_is_told_and_whether_it_will_do(source, caplog, monkeypatch):
    told = "each process keeps up to 1.21e-05 GiB of them in memory; "
    open_source(source._paths[0])
    assert told + "these are too large to train on" in caplog.text  # 64 of them are not kept
    caplog.clear()
    monkeypatch.setattr(module, "_KEPT", 1 << 20)
    open_source(source._paths[0])
    assert "train on it with shuffle: block" in caplog.text
