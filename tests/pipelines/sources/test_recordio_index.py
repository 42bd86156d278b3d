"""Which records of a ``.rec`` are its images, whatever state the ``.idx`` is in."""

import logging
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from pipelines.sources import recordio_index as index_module
from pipelines.sources.recordio import MAGIC, IRHeader, RecordReader, pack
from pipelines.sources.recordio_index import read_index, scan
from pipelines.sources.recordio_writer import RecordWriter, write_dataset

MAGIC_BYTES = struct.pack("<I", MAGIC)
SIZES = [3, 1, 4, 2]
IMAGES = [
    [b"%d of %d " % (n, label) + MAGIC_BYTES * (n % 3) + b"." * (n + label) for n in range(size)]
    for label, size in enumerate(SIZES)
]


@pytest.fixture
def rec(tmp_path):
    """Insightface's layout; many records are of several parts."""
    write_dataset(tmp_path, IMAGES)
    return tmp_path / "train.rec"


@pytest.fixture
def plain_rec(tmp_path):
    """im2rec's layout: images only, keys without order, a label that is the greatest but not the last, no property."""
    labels = [2, 9, 0, 5]
    with RecordWriter(tmp_path / "plain.rec") as writer:
        for key, label in zip([7, 3, 9, 1], labels):
            writer.write(key, pack(IRHeader(0, label, key), b"image %d" % label))
    return tmp_path / "plain.rec"


def listed(rec):
    return np.loadtxt(rec.with_suffix(".idx"), np.int64, ndmin=2)


def payloads(rec):
    index = read_index(rec)
    return [image.tobytes() for image in RecordReader(rec, index.offsets).read(np.arange(len(index.offsets)))[0]]


def test_insightface_layout(rec):
    index = read_index(rec)
    assert index.offsets.dtype == np.int64
    assert index.offsets.tolist() == listed(rec)[1:11, 1].tolist()
    assert (index.end, index.num_classes, index.first_record) == (listed(rec)[11, 1], 4, 1)
    assert payloads(rec) == sum(IMAGES, [])


def test_plain_layout_in_the_order_of_the_file(plain_rec, caplog):
    lines = plain_rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    plain_rec.with_suffix(".idx").write_text("".join(lines[::-1]))
    index = read_index(plain_rec)
    assert payloads(plain_rec) == [b"image 2", b"image 9", b"image 0", b"image 5"]
    assert (index.end, index.num_classes, index.first_record) == (plain_rec.stat().st_size, 10, 0)
    assert not caplog.records


def test_class_count_from_property_then_identity_records_then_labels(rec, plain_rec, monkeypatch):
    property_ = rec.with_name("property")
    property_.write_text("77, 112,112\n")
    assert read_index(rec).num_classes == 77
    property_.unlink()
    assert read_index(rec).num_classes == 4
    monkeypatch.setattr(index_module, "_CHUNK", 3)  # labels are counted in chunks
    assert read_index(plain_rec).num_classes == 10
    with RecordWriter(plain_rec) as writer:
        for key, label in enumerate((np.nan, 6, np.inf)):
            writer.write(key, pack(IRHeader(0, label, key), b"image"))
    assert read_index(plain_rec).num_classes == 7
    for text in ("", "many,112,112", "-3,112,112", "0,112,112"):
        property_.write_text(text)
        with pytest.raises(ValueError, match="property should read 'classes,height,width'"):
            read_index(rec)


def test_scan_finds_all_records(rec, plain_rec, monkeypatch):
    for chunk in (1 << 20, 5):
        monkeypatch.setattr(index_module, "_CHUNK", chunk)
        assert scan(rec)[0].tolist() == listed(rec)[:, 1].tolist()
        assert scan(plain_rec)[0].tolist() == listed(plain_rec)[:, 1].tolist()


def test_scan_leaves_out_what_is_too_short_for_a_header(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, record in enumerate((pack(IRHeader(0, 1, 0), b"image"), b"short", pack(IRHeader(0, 2, 0), b"image"))):
            writer.write(key, record)
    assert scan(tmp_path / "a.rec")[0].tolist() == np.delete(listed(tmp_path / "a.rec")[:, 1], 1).tolist()


def spoiled(lines):
    yield "missing", None
    yield "is empty", []
    yield "ends at byte", lines[:-3]
    yield "train.idx", [*lines[:-1], lines[-1][:-3]]  # cut within its last number
    yield "a line that is not", [*lines[:-1], lines[-1].split("\t")[0]]  # cut before it
    yield "a line that is not", ["key\toffset\n", *lines]
    yield "does not belong", [f"{key}\t{100 * key}\n" for key in range(len(lines))]
    yield "does not belong", [*lines, f"99\t{1 << 40}\n"]
    yield "does not belong", [*lines, "99\t-4\n"]
    yield "does not belong", [*lines, "99\t30\n"]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("case", range(10))
def test_a_spoiled_idx_is_replaced_but_not_overwritten(rec, caplog, case):
    idx = rec.with_suffix(".idx")
    reason, lines = list(spoiled(idx.read_text().splitlines(keepends=True)))[case]
    expected = read_index(rec)
    idx.unlink()
    if lines is not None:
        idx.write_text("".join(lines))
    with caplog.at_level(logging.WARNING):
        found = read_index(rec)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert (found.end, found.num_classes, found.first_record) == (expected.end, 4, 1)
    assert len(caplog.records) == 1 and reason in caplog.text and "train.idx" in caplog.text
    assert not idx.exists() if lines is None else idx.read_text() == "".join(lines)


def test_an_idx_may_leave_out_images(plain_rec, caplog):
    lines = plain_rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    plain_rec.with_suffix(".idx").write_text("".join([lines[0], *lines[2:]]))
    assert payloads(plain_rec) == [b"image 2", b"image 0", b"image 5"]
    assert not caplog.records


def test_damage_costs_the_records_it_lies_in(rec, caplog):
    offsets = listed(rec)[:, 1]
    content = bytearray(rec.read_bytes())
    content[offsets[4]] ^= 1  # no magic
    content[offsets[6] + 6] ^= 1  # a length that reaches over the next record
    rec.write_bytes(content[: offsets[-1] + 9])  # and cut within the last record
    rec.with_suffix(".idx").unlink()
    found, left_out = scan(rec)
    assert found.tolist() == np.delete(offsets, [4, 6, len(offsets) - 1]).tolist() and left_out == 2
    assert "2 damaged or truncated records" in caplog.text
    images = sum(IMAGES, [])
    assert payloads(rec) == [image for key, image in enumerate(images, 1) if key not in (4, 6)]
    assert "10 images are announced, there are 8" in caplog.text
    assert read_index(rec).num_classes == 4


def test_the_images_end_where_identity_records_begin_though_the_header_is_rounded(rec, monkeypatch):
    """Past 2^24 float32 cannot tell the number of the first identity record; here the limit is made small."""
    offsets = listed(rec)[:, 1]
    content = bytearray(rec.read_bytes())
    rec.with_name("property").unlink()
    content[32:40] = struct.pack("<ff", 12.0, 17.0)  # truly 11 and 15
    rec.write_bytes(content)
    monkeypatch.setattr(index_module, "LABEL_LIMIT", 8)
    index = read_index(rec)
    assert index.offsets.tolist() == offsets[1:11].tolist()
    assert index.num_classes == 4


def test_property_and_header_that_disagree_are_told(rec, caplog):
    rec.with_name("property").write_text("77,112,112")
    assert read_index(rec).num_classes == 77
    assert "'property' announces 77 classes, record 0 4" in caplog.text


def test_without_property_and_identity_records_the_labels_of_the_images_are_counted(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, pack(IRHeader(2, [3, 3], 0), b""))
        for key, label in ((1, 0), (2, 1)):
            writer.write(key, pack(IRHeader(0, label, key), b"image"))
    index = read_index(tmp_path / "a.rec")
    assert (len(index.offsets), index.num_classes) == (2, 2)


@pytest.mark.parametrize("labels", [(np.nan, 15), (11, np.inf), (-1, 15), (11, 3)])
def test_a_header_record_without_sense_is_refused(rec, labels):
    content = bytearray(rec.read_bytes())
    content[32:40] = struct.pack("<ff", *labels)
    rec.write_bytes(content)
    with pytest.raises(ValueError, match="record 0 holds neither an image nor"):
        read_index(rec)


def test_files_that_are_no_records_are_refused(tmp_path):
    for content in (b"", b"short", b"\x89PNG" * 1000):
        (tmp_path / "a.rec").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.rec .*no RecordIO file"):
            read_index(tmp_path / "a.rec")
    with pytest.raises(FileNotFoundError, match=r"b\.rec"):
        read_index(tmp_path / "b.rec")
    write_dataset(tmp_path, [[b"image"]])
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[: listed(tmp_path / "train.rec")[1, 1]])
    with pytest.raises(ValueError, match="holds no images"):
        read_index(tmp_path / "train.rec")


class TestCache:
    def builds(self, rec, monkeypatch):
        """Reads the index; was it built, or taken from the cache?"""
        calls = []
        original = index_module._build
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "_build", lambda rec: calls.append(rec) or original(rec))
            index = read_index(rec)
        assert payloads(rec) == sum(IMAGES, []) and index.num_classes == 4
        return bool(calls)

    def test_serves_until_a_file_changes(self, rec, monkeypatch):
        assert [self.builds(rec, monkeypatch) for _ in range(2)] == [True, False]
        for path in (rec, rec.with_suffix(".idx"), rec.with_name("property")):
            os.utime(path, ns=(1, 1))
            assert [self.builds(rec, monkeypatch) for _ in range(2)] == [True, False]
        rec.with_suffix(".idx").unlink()
        assert [self.builds(rec, monkeypatch) for _ in range(2)] == [True, False]
        rec.with_name("property").unlink()
        assert [self.builds(rec, monkeypatch) for _ in range(2)] == [True, False]

    def test_damaged_is_made_anew(self, rec, monkeypatch):
        cache = rec.with_suffix(".cache.npz")
        self.builds(rec, monkeypatch)
        good = cache.read_bytes()
        for bad in (b"", b"no archive", good[:200], good[:-100], good[:150] + b"????" + good[154:]):
            cache.write_bytes(bad)
            assert self.builds(rec, monkeypatch)
            assert not self.builds(rec, monkeypatch)

    def test_nothing_is_written_into_a_read_only_folder(self, rec, monkeypatch):
        rec.parent.chmod(0o555)
        try:
            assert all(self.builds(rec, monkeypatch) for _ in range(2))
        finally:
            rec.parent.chmod(0o755)
        assert sorted(path.name for path in rec.parent.iterdir()) == ["property", "train.idx", "train.rec"]


@pytest.mark.filterwarnings("ignore:loadtxt")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_give_an_index_or_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder, IMAGES[:2])
    for name in ("train.rec", "train.idx", "property"):
        content = bytearray((folder / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.sampled_from([0, 1, 9, 10, 32, 45, 48, 57, 64, 96, 128, 255]))
        (folder / name).write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    try:
        index = read_index(folder / "train.rec")
        RecordReader(folder / "train.rec", index.offsets).read(np.arange(len(index.offsets)))
    except ValueError as error:
        assert str(folder) in str(error)


def test_real_files(shared, tmp_path):
    for name, count in (("testing", 217), ("validation", 229)):
        folder = shared / "faces" / "recordio"
        (tmp_path / f"{name}.rec").write_bytes((folder / f"{name}.rec").read_bytes())
        (tmp_path / f"{name}.idx").write_bytes((folder / f"{name}.idx").read_bytes())
        index = read_index(tmp_path / f"{name}.rec")
        assert (len(index.offsets), index.num_classes) == (count, 25)  # counted from the labels: there is no property
        assert index.offsets.tolist() == scan(tmp_path / f"{name}.rec")[0].tolist()


class TestLabelsWithGaps:
    """As those of CASIA-WebFace, numbers of a film database, written by im2rec without a ``property``."""

    LABELS = [45, 99, 45, 6573068, 6573068, 99]

    def write(self, folder):
        with RecordWriter(folder / "train.rec") as writer:
            for key, label in enumerate(self.LABELS):
                writer.write(key, pack(IRHeader(0, label, key), bytes([key + 1] * 9)))
        return folder

    def test_are_numbered_anew_and_told(self, tmp_path, caplog):
        for _ in range(2):  # the second time from the cache
            source = open_source(self.write(tmp_path))
            assert source.num_classes == 3
            assert source.read(np.arange(6))[1].tolist() == source.labels(np.arange(6)).tolist() == [0, 1, 0, 2, 2, 1]
            assert [source.identity(label) for label in range(3)] == ["45", "99", "6573068"]
        assert "labels up to 6573068 for 3 identities: numbered anew" in caplog.text

    def test_stand_where_a_count_is_announced(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "property").write_text("6573069,112,112")
        assert open_source(tmp_path).read(np.array([3]))[1].tolist() == [6573068]


class TestCutShort:
    """Told at every start, from the cache too, and counted as bad."""

    def test_by_record_0(self, rec, caplog):
        os.truncate(rec, listed(rec)[7, 1] + 9)
        for idx in (True, True, False, False):
            if not idx:
                rec.with_suffix(".idx").unlink(missing_ok=True)
            caplog.clear()
            source = open_source(rec)
            assert (len(source), source.missing) == (6, 4)
            assert source.shortage == f"{rec} is cut short or damaged; copy it again"
            assert "train.rec: 10 images are announced, there are 6" in caplog.text

    @pytest.mark.parametrize("cut", [1, 9, 400])
    def test_by_the_idx(self, tmp_path, cut, caplog):
        with RecordWriter(tmp_path / "a.rec") as writer:
            for key in range(20):
                writer.write(key, pack(IRHeader(0, key % 2, key), b"image" * 20))
        rec = tmp_path / "a.rec"
        assert (open_source(rec).missing, open_source(rec).shortage) == (0, "")
        os.truncate(rec, rec.stat().st_size - cut)
        for _ in range(2):
            caplog.clear()
            source = open_source(rec)
            assert source.missing == 20 - len(source) == cut // 132 + 1
            assert f"a.rec: 20 images are announced, there are {len(source)}" in caplog.text

    def test_a_run_ends_at_once_where_too_much_is_missing(self, rec):
        os.truncate(rec, listed(rec)[7, 1] + 9)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"4 of 10 images are missing, .* 0\.3 .*train\.rec is cut short"):
                Loader(open_source(rec), batch_size=1, seed=0, max_bad_fraction=0.3)
        Loader(open_source(rec), batch_size=1, seed=0, max_bad_fraction=0.4)
