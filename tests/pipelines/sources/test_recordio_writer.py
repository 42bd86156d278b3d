"""What is written as RecordIO: as insightface reads it, and whole or not at all."""

import numpy as np
import pytest

from pipelines.sources.recordio_writer import RecordWriter, write_dataset


def test_a_failed_writer_leaves_what_was_there(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"new")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="class 1 has no images"):
        write_dataset(tmp_path / "set", [[b"image"], []])
    assert list((tmp_path / "set").iterdir()) == []


def test_insightface_layout(tmp_path, mxnet):
    sizes = [3, 1, 4]
    identities = [[f"image {label} {n}".encode() for n in range(size)] for label, size in enumerate(sizes)]
    assert write_dataset(tmp_path, (iter(images) for images in identities)) == (3, 8)
    assert (tmp_path / "property").read_text() == "3,112,112"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]

    # As insightface's own data sets read it.
    recordio = mxnet.recordio
    file = recordio.MXIndexedRecordIO(str(tmp_path / "train.idx"), str(tmp_path / "train.rec"), "r")
    header, payload = recordio.unpack(file.read_idx(0))
    assert (header.flag, header.label.tolist(), payload) == (2, [9.0, 12.0], b"")
    images = [recordio.unpack(file.read_idx(key)) for key in range(1, 9)]
    assert [image for _, image in images] == sum(identities, [])
    assert [header.label for header, _ in images] == np.repeat(range(3), sizes).tolist()
    assert [header.id for header, _ in images] == list(range(1, 9))
    ranges = [recordio.unpack(file.read_idx(key)) for key in range(9, 12)]
    assert [header.label.tolist() for header, _ in ranges] == [[1, 4], [4, 5], [5, 9]]
    assert all((header.flag, payload) == (2, b"") for header, payload in ranges)
    file.close()
