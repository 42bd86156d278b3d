"""Records without an image may lie anywhere in a ``.rec``, and cost no other image."""

import struct

import numpy as np
import pytest

from pipelines.prepare.check import check
from pipelines.sources import open_source
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_index import read_index
from pipelines.sources.recordio_writer import RecordWriter
from tests.pipelines.photos import jpeg


def listed(rec):
    return np.loadtxt(rec.with_suffix(".idx"), np.int64, ndmin=2)


def write(folder, empty, flag=0, identities=True, image=b"image"):
    """40 images of 4 identities, in insightface's layout."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(0, pack(IRHeader(2, [41, 45 if identities else 41], 0), b""))
        for key in range(1, 41):
            label = [(key - 1) // 10, 7, 8][: flag or None] if flag else (key - 1) // 10
            writer.write(key, pack(IRHeader(flag, label, key), b"" if key in empty else image))
        for person in range(4 * identities):
            writer.write(41 + person, pack(IRHeader(2, [10 * person + 1, 10 * person + 11], 0), b""))
    return folder / "train.rec"


@pytest.mark.parametrize("flag", [0, 1, 2, 3])
def test_in_insightface_layout(tmp_path, flag):
    for empty in [{position} for position in range(1, 41)] + [{1, 2, 39, 40}, set(range(15, 30)), {20, 40}]:
        rec = write(tmp_path, empty, flag)
        index = read_index(rec)
        assert (len(index.offsets), index.num_classes) == (40, 4)
        assert index.offsets.tolist() == listed(rec)[1:41, 1].tolist()


def test_without_identity_records(tmp_path):
    for position in range(1, 41):
        assert len(read_index(write(tmp_path, {position}, identities=False)).offsets) == 40


def test_where_the_header_is_wrong(tmp_path, caplog):
    for announced in (30, 44, 46, 99):
        for position in range(1, 41):
            rec = write(tmp_path, {position})
            content = bytearray(rec.read_bytes())
            content[32:40] = struct.pack("<ff", announced, announced + 4)
            rec.write_bytes(content)
            assert len(read_index(rec).offsets) == 40
            assert f"{announced - 1} images are announced, there are 40" in caplog.text


def test_beside_damaged_identity_records(tmp_path):
    for damaged in range(41, 44):
        rec = write(tmp_path, {20})
        content = bytearray(rec.read_bytes())
        content[listed(rec)[damaged, 1]] ^= 1
        rec.write_bytes(content)
        assert len(read_index(rec).offsets) == 40


def test_in_im2rec_s_layout(tmp_path):
    for position in range(10):
        with RecordWriter(tmp_path / "a.rec") as writer:
            for key in range(10):
                writer.write(key, pack(IRHeader(0, key // 5, key), b"" if key == position else b"image"))
        index = read_index(tmp_path / "a.rec")
        assert (len(index.offsets), index.num_classes, index.first_record) == (10, 2, 0)


def test_they_are_unreadable_to_check(tmp_path):
    rec = write(tmp_path, {20, 40}, image=jpeg(0))
    report = check(open_source(rec), threads=1)
    assert list(report.problems["unreadable"]) == [19, 39]
    assert "record 20 at byte" in report.problems["unreadable"][19]
