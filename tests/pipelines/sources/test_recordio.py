"""RecordIO against MXNet's own reader and writer, DALI's reader, and bytes written by hand."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources import recordio
from pipelines.sources.recordio import MAGIC, IRHeader, RecordReader, pack, split, unpack
from pipelines.sources.recordio_writer import RecordWriter

MAGIC_BYTES = struct.pack("<I", MAGIC)

# Bytes in which the magic, whole, shifted and cut, is common.
tricky_bytes = st.lists(st.sampled_from([MAGIC_BYTES, b"\0", b"abc", MAGIC_BYTES[:3], b"wxyz"]), max_size=12).map(
    b"".join
)
labels = st.one_of(st.integers(0, 1 << 24), st.lists(st.integers(0, 1 << 24), min_size=1, max_size=5))


def write_records(folder, records):
    with RecordWriter(folder / "a.rec") as writer:
        for key, record in enumerate(records):
            writer.write(key, record)
    return offsets_of(folder / "a.idx")


def offsets_of(idx):
    return np.array([int(line.split("\t")[1]) for line in idx.read_text().splitlines()])


def test_bytes_of_a_file_by_hand():
    head = struct.pack("<IfQQ", 0, 7.0, 5, 0)
    assert pack(IRHeader(9, 7, 5), b"img") == head + b"img"
    assert split(head + b"img") == MAGIC_BYTES + struct.pack("<I", 27) + head + b"img\0"
    several = pack(IRHeader(0, [3, 0.25], 5, 6), b"img")
    assert several == struct.pack("<IfQQff", 2, 0.0, 5, 6, 3.0, 0.25) + b"img"

    first, middle, last = (kind << 29 for kind in (1, 2, 3))
    cut = split(b"abcd" + MAGIC_BYTES + MAGIC_BYTES + b"e")
    assert cut == b"".join(
        MAGIC_BYTES + struct.pack("<I", part) + piece
        for part, piece in ((first | 4, b"abcd"), (middle | 0, b""), (last | 1, b"e\0\0\0"))
    )
    assert split(b"abc" + MAGIC_BYTES) == MAGIC_BYTES + struct.pack("<I", 7) + b"abc" + MAGIC_BYTES + b"\0"


@given(labels, tricky_bytes, st.integers(0, 2**64 - 1))
def test_unpack_undoes_pack(label, payload, key):
    header, image = unpack(pack(IRHeader(0, label, key), payload))
    assert (image, header.id, np.array(header.label).tolist()) == (payload, key, label)
    assert header.flag == np.size(label) * (np.ndim(label) > 0)


@pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")
@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.tuples(labels, tricky_bytes, tricky_bytes), min_size=1, max_size=6))
def test_same_bytes_as_mxnet_and_read_by_each_other(mxnet, tmp_path_factory, records):
    recordio, folder = mxnet.recordio, tmp_path_factory.mktemp("records")
    ours, theirs = [], []
    for label, noise, payload in records:
        number = int.from_bytes(noise[:8], "little")  # now and then the magic lies in the header itself
        ours.append(pack(IRHeader(0, label, number), payload))
        theirs.append(recordio.pack(recordio.IRHeader(0, label, number, 0), payload))
    assert ours == theirs

    writer = recordio.MXIndexedRecordIO(str(folder / "b.idx"), str(folder / "b.rec"), "w")
    for key, record in enumerate(theirs):
        writer.write_idx(key, record)
    writer.close()
    offsets = write_records(folder, ours)
    assert (folder / "a.rec").read_bytes() == (folder / "b.rec").read_bytes()
    assert (folder / "a.idx").read_bytes() == (folder / "b.idx").read_bytes()

    reader = RecordReader(folder / "b.rec", offsets)
    payloads, first_labels = reader.read(np.arange(len(reader)))
    assert [payload.tobytes() for payload in payloads] == [payload for _, _, payload in records]
    assert first_labels.tolist() == [np.ravel(label)[0] for label, _, _ in records]
    assert first_labels.tolist() == reader.labels(np.arange(len(reader))).tolist()
    assert reader.end(len(reader) - 1) == reader.size
    other = recordio.MXIndexedRecordIO(str(folder / "a.idx"), str(folder / "a.rec"), "r")
    assert [other.read_idx(key) for key in range(len(ours))] == ours
    other.close()


def test_dali_reads_what_is_written(tmp_path):
    from nvidia.dali import fn, pipeline_def

    generator = np.random.default_rng(0)
    payloads = [generator.bytes(int(n)) for n in generator.integers(50, 2000, 20)]
    payloads[3] = payloads[3][:40] + MAGIC_BYTES * 2 + payloads[3][40:]
    write_records(tmp_path, [pack(IRHeader(0, 100 + key, key), payload) for key, payload in enumerate(payloads)])

    @pipeline_def(batch_size=20, num_threads=1, device_id=None)
    def read():
        images, numbers = fn.readers.mxnet(path=[str(tmp_path / "a.rec")], index_path=[str(tmp_path / "a.idx")])
        return images, numbers

    pipeline = read()
    images, numbers = pipeline.run()
    assert [images.at(i).tobytes() for i in range(20)] == payloads
    assert numbers.as_array().ravel().tolist() == list(range(100, 120))


def test_a_multi_part_record_in_a_file_longer_than_a_part_can_be(tmp_path):
    """There the kind, in the bits above the length, does not make a part reach past the end of the file."""
    payload = b"abcd" + MAGIC_BYTES + b"e"
    offsets = write_records(tmp_path, [pack(IRHeader(0, 1, 0), payload)])
    os.truncate(tmp_path / "a.rec", 5 << 29)  # sparse: it takes no space
    payloads, _ = RecordReader(tmp_path / "a.rec", offsets).read(np.array([0]))
    assert payloads[0].tobytes() == payload


def test_the_single_label_is_idle_where_several_follow(tmp_path):
    offsets = write_records(tmp_path, [struct.pack("<IfQQff", 2, 7.0, 0, 0, 3.0, 4.0) + b"img"])
    reader = RecordReader(tmp_path / "a.rec", offsets)
    assert reader.read(np.array([0]))[1].tolist() == [3]


def test_payloads_are_not_to_be_written_to(tmp_path):
    offsets = write_records(tmp_path, [pack(IRHeader(0, key, key), b"x" * 40) for key in range(5)])
    reader = RecordReader(tmp_path / "a.rec", offsets)
    for payload in (*reader.read(np.array([1, 3]))[0], reader.unpack(2)[1]):
        assert not payload.flags.owndata and not payload.flags.writeable


def test_records_longer_than_what_is_read_at_once_and_gaps_between_them(tmp_path, monkeypatch):
    payloads = [bytes([key]) * 5000 * (key + 1) for key in range(5)]
    offsets = write_records(tmp_path, [pack(IRHeader(0, [key, 1], key), x) for key, x in enumerate(payloads)])
    for at_once in (64, 12_000, 1 << 18):
        monkeypatch.setattr(recordio, "_AT_ONCE", at_once)
        reader = RecordReader(tmp_path / "a.rec", offsets[::2])  # as of an .idx that leaves some out
        read, labels = reader.read(np.array([2, 0, 1]))
        assert [payload.tobytes() for payload in read] == [payloads[4], payloads[0], payloads[2]]
        assert labels.tolist() == [4, 0, 2]


def test_labels_that_float32_would_change_are_refused():
    pack(IRHeader(0, 2**24, 0), b"")
    pack(IRHeader(0, [2**24 + 2, 0.1], 0), b"")
    for label in (2**24 + 1, [0, 2**25 + 2]):
        with pytest.raises(ValueError, match=r"label (16777217|33554434) cannot be kept"):
            pack(IRHeader(0, label, 0), b"")


def test_damaged_records_are_named(tmp_path):
    offsets = write_records(tmp_path, [pack(IRHeader(0, key, key), b"x" * 40) for key in range(3)])
    good = (tmp_path / "a.rec").read_bytes()

    def read(content, indices=(0, 1, 2)):
        (tmp_path / "b.rec").write_bytes(content)
        return RecordReader(tmp_path / "b.rec", offsets, first_record=1).read(np.array(indices))

    at = int(offsets[1])
    with pytest.raises(ValueError, match=rf"b\.rec record 2 at byte {at}: there is no part of a record at byte {at}"):
        read(good[:at] + b"\1" + good[at + 1 :])
    for length, reason in ((5000, "past the end"), (8, "too short for an image header"), (2 << 29, "out of place")):
        with pytest.raises(ValueError, match=rf"record 2 at byte {at}: .*{reason}"):
            read(good[: at + 4] + struct.pack("<I", length) + good[at + 8 :])
    with pytest.raises(ValueError, match=r"too short for the 4294967295 labels"):
        read(good[: at + 8] + b"\xff" * 4 + good[at + 12 :])
    with pytest.raises(ValueError, match=r"record 3 .*past the end"):
        read(good[:-4])
    assert read(good[:-4], (0, 1))[1].tolist() == [0, 1]
    for wrong in ([0, 2], [-4], [0, len(good)]):
        with pytest.raises(ValueError, match="no record can start there"):
            RecordReader(tmp_path / "a.rec", np.array(wrong))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    payloads = [b"x" * 40, b"abcd" + MAGIC_BYTES + b"efgh", b"y" * 9]
    offsets = write_records(folder, [pack(IRHeader(0, [key, 1], key), payload) for key, payload in enumerate(payloads)])
    content = bytearray((folder / "a.rec").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 32, 64, 96, 128, 255]))
    (folder / "b.rec").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        reader = RecordReader(folder / "b.rec", offsets)
        reader.labels(np.arange(3))
        reader.read(np.arange(3))
    except ValueError as error:
        assert "b.rec" in str(error)
