"""Labels of a whole data set are asked for in pieces, wherever somebody needs them all."""

import numpy as np
import pytest

from pipelines.prepare.check import check
from pipelines.sources import collection, open_source, source
from pipelines.sources.memory import MemorySource
from pipelines.sources.recordio import IRHeader, RecordReader, pack
from pipelines.sources.recordio_writer import RecordWriter
from pipelines.sources.source import all_labels
from tests.pipelines.photos import jpeg, write_folder


@pytest.fixture
def asked(monkeypatch):
    """How many labels every source was asked for, call by call."""
    counts = []

    def counting(of):
        original = of.labels

        def labels(self, indices):
            counts.append(len(indices))
            return original(self, indices)

        monkeypatch.setattr(of, "labels", labels)

    counting(source.LabelledSource)
    counting(RecordReader)
    monkeypatch.setattr(source, "_LABELS_AT_A_TIME", 4, raising=False)
    return counts


@pytest.mark.parametrize("count", [0, 3, 4, 9])
def test_they_are_those_of_one_call(count, asked):
    labels = np.random.default_rng(0).integers(0, 9, 12)
    chosen = np.random.default_rng(1).permutation(12)[:count]
    assert np.array_equal(all_labels(MemorySource([b"x"] * 12, labels), chosen), labels[chosen])
    assert asked == {0: [0], 3: [3], 4: [4], 9: [4, 4, 1]}[count]


def test_a_check_asks_in_pieces(asked):
    assert check(MemorySource([jpeg(n) for n in range(9)], np.arange(9) % 3), threads=1).sound
    assert asked == [9, 4, 4, 1]  # first those of the one batch of images that is judged


def test_a_record_file_without_a_class_count_is_gone_through_in_pieces(tmp_path, asked):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in range(9):
            writer.write(key, pack(IRHeader(0, key % 3, key), jpeg(key)))
    assert open_source(tmp_path).num_classes == 3
    assert asked == [4, 4, 1]


def test_a_collection_asks_in_pieces(tmp_path, asked):
    write_folder(tmp_path / "a", {"anna": 6, "bob": 5})
    (tmp_path / "names.txt").write_text("bob\n")
    (tmp_path / "images.txt").write_text("\n".join(map(str, range(10))))
    chosen = {"identities": str(tmp_path / "names.txt"), "images": str(tmp_path / "images.txt")}
    joined, sizes = collection.open_collection([collection.DataSet(str(tmp_path / "a"), **chosen)])
    assert (sizes, joined.num_classes) == ([4], 1) and asked and max(asked) == 4
