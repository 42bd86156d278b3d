"""Folder names are names, labels are numbers where they can be, and whatever is done to them is said."""

import json

import numpy as np
import pytest

from pipelines.prepare.align import read_landmarks
from pipelines.prepare.convert import convert
from pipelines.sources import open_source
from pipelines.sources.identities import label_text, number_labels, number_texts
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_writer import RecordWriter
from tests.pipelines.photos import jpeg, people_in, write_tar

FILM_NUMBERS = ["0000045", "0000099", "6573068"]  # as CASIA-WebFace names its folders


def people():
    return {name: [jpeg(2 * n), jpeg(2 * n + 1)] for n, name in enumerate(FILM_NUMBERS)}


def tar_of_folders(root):
    write_tar(root / "a.tar", {f"{name}/{n}.jpg": i for name, both in people().items() for n, i in enumerate(both)})
    return root / "a.tar"


def lmdb_of_folders(root):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(root / "lmdb")) as environment, environment.begin(write=True) as transaction:
        for name, both in people().items():
            for n, image in enumerate(both):
                transaction.put(f"{name}/{n}".encode(), image)
    return root / "lmdb"


def list_with_leading_zeros(root):
    for name, both in people().items():
        for n, image in enumerate(both):
            (root / f"{name}_{n}.jpg").write_bytes(image)
    (root / "a.txt").write_text("".join(f"{name}_{n}.jpg {name}\n" for name in FILM_NUMBERS for n in range(2)))
    return root / "a.txt"


def parquet_of_texts(root):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [(name, image) for name, both in people().items() for image in both]
    names, images = zip(*rows)
    pq.write_table(pyarrow.table({"image": pyarrow.array(images), "label": list(names)}), root / "a.parquet")
    return root / "a.parquet"


@pytest.mark.parametrize("make", [tar_of_folders, lmdb_of_folders, list_with_leading_zeros, parquet_of_texts])
def test_names_that_look_like_numbers_stay_names(tmp_path, make):
    source = open_source(make(tmp_path))
    assert (len(source), source.num_classes) == (6, 3)
    assert people_in(source) == people()
    convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "identities.json").read_text()) == FILM_NUMBERS


def test_folders_of_photographs_with_landmarks_stay_names(tmp_path):
    line = "{}/1.jpg" + " 1 2" * 5 + "\n"
    (tmp_path / "points.txt").write_text("".join(map(line.format, FILM_NUMBERS)))
    source, _ = read_landmarks(tmp_path / "points.txt")
    assert [source.identity(label) for label in range(source.num_classes)] == FILM_NUMBERS


def number(labels, known=()):
    identities, numbers = number_labels(np.array(labels), known, "set.lst")
    return identities.count, numbers.tolist(), [identities.name(label) for label in numbers.tolist()]


def test_nearly_dense_numbers_stand_as_they_are(caplog):
    assert number([2, 0, 7, 2]) == (8, [2, 0, 7, 2], ["2", "0", "7", "2"])
    dense = np.arange(1, 2000, 2)  # 1000 identities, every other number
    assert number(dense)[:2] == (2000, dense.tolist())
    assert not caplog.records


def test_numbers_with_great_gaps_are_numbered_anew_and_it_is_said(caplog):
    labels = [5680089, 45, 10575, 45]
    assert number(labels) == (3, [2, 0, 1, 0], ["5680089", "45", "10575", "45"])
    assert "set.lst: labels up to 5680089 for 3 identities: numbered anew in ascending order" in caplog.text
    assert number(np.arange(1000) * 3)[0] == 1000


def test_announced_classes_need_no_images_and_a_wrong_count_is_said(caplog):
    names = [f"n{n}" for n in range(1000)]
    assert number([999, 3], names) == (1000, [999, 3], ["n999", "n3"])
    assert not caplog.records
    assert number([4, 1], names[:3]) == (5, [4, 1], ["4", "n1"])
    assert "labels go up to 4, but only 3 classes have names" in caplog.text
    assert number([5_000_000, 1], names[:3]) == (2, [1, 0], ["5000000", "n1"])


def test_labels_as_text():
    texts = {" 3": "3", "3.000000": "3", "0": "0", "anna": "anna", "007": "007", "1" * 30: "1" * 30, "-": "-"}
    assert {text: label_text(text) for text in texts} == texts
    for text in ("", " \n", "None", "nan", "null"):
        with pytest.raises(ValueError, match="the label is missing"):
            label_text(text)
    for text in ("-1", "+1", "1.5", "-1.000000"):
        with pytest.raises(ValueError, match=r"label .* is no class number"):
            label_text(text)
    assert number_texts(["10", "9", "9"], (), "x")[1].tolist() == [10, 9, 9]
    assert number_texts(["10", "9", "x"], (), "x")[1].tolist() == [0, 1, 2]
    assert number_texts(["1" * 30, "9"], (), "x")[1].tolist() == [0, 1]  # more digits than int64 has


class TestWhatASetAnnounces:
    def records(self, folder, labels, announced):
        with RecordWriter(folder / "train.rec") as writer:
            for key, label in enumerate(labels):
                writer.write(key, pack(IRHeader(0, label, key), jpeg(key)))
        (folder / "property").write_text(f"{announced},112,112")

    def test_a_few_classes_without_images_are_no_matter(self, tmp_path, caplog):
        self.records(tmp_path, [0, 5], 7)
        assert open_source(tmp_path).num_classes == 7
        assert not caplog.records

    def test_far_more_classes_than_images(self, tmp_path, caplog):
        self.records(tmp_path, [0, 5], 5_000_000)
        assert open_source(tmp_path).num_classes == 5_000_000
        assert f"{tmp_path}: 5000000 classes for 2 images" in caplog.text
        self.records(tmp_path, [0, 5], 10**12)
        with pytest.raises(ValueError, match="announces 1000000000000 classes for 2 images"):
            open_source(tmp_path)

    def test_names_that_are_too_few(self, tmp_path, caplog):
        self.records(tmp_path, [0, 1, 2], 3)
        (tmp_path / "identities.json").write_text('["a", "b"]')
        assert open_source(tmp_path).identity(2) == "2"
        assert "3 classes, but identities.json has 2 names" in caplog.text

    def test_a_single_identity_is_said(self, tmp_path, caplog):
        write_tar(tmp_path / "a.tar", {f"small_dataset/images/{n}.jpg": jpeg(n) for n in range(3)})
        assert open_source(tmp_path / "a.tar").num_classes == 1
        assert "all 3 images are of one identity, 'small_dataset/images'" in caplog.text
