"""Labels of Parquet's columns and of LMDB's keys and records."""

import json

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources.recordio import IRHeader, pack
from tests.pipelines.photos import jpeg


class TestParquet:
    pyarrow = pytest.importorskip("pyarrow")

    def read(self, folder, features=None, **columns):
        import pyarrow.parquet as pq

        rows = len(next(iter(columns.values())))
        images = [{"bytes": jpeg(n, 16), "path": None} for n in range(rows)]
        table = self.pyarrow.table({"image": images, **columns})
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
        pq.write_table(table.replace_schema_metadata(metadata), folder / "a.parquet", row_group_size=2)
        source = open_source(folder / "a.parquet")
        return [source.identity(label) for label in source.labels(np.arange(rows)).tolist()], source.num_classes

    @pytest.mark.parametrize(
        "labels, names, count",
        [
            ([0.0, 1.0, 1.0], ["0", "1", "1"], 2),
            ([True, False, True], ["1", "0", "1"], 2),
            (["07201", "7201", "7201"], ["07201", "7201", "7201"], 2),
            (["3", "1", "1"], ["3", "1", "1"], 4),
            ([69003071, 7, 7], ["69003071", "7", "7"], 2),
            (pyarrow.array(["x", "y", "y"]).dictionary_encode(), ["x", "y", "y"], 2),
            (pyarrow.array([1, 0, 0], pyarrow.uint8()), ["1", "0", "0"], 2),
        ],
    )
    def test_labels_of_any_type(self, tmp_path, labels, names, count):
        assert self.read(tmp_path, label=labels) == (names, count)

    def test_announced_classes(self, tmp_path):
        features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
        assert self.read(tmp_path, features, label=[2, 0]) == (["c", "a"], 3)

    @pytest.mark.parametrize(
        "labels, reason",
        [
            ([0, None, 1], "the label of row 1 is missing"),
            (["a", "b", None], "the label of row 2 is missing"),
            (["a", "None", "b"], r"row 1: the label is missing \('None'\)"),
            (["a", " ", "b"], "row 1: the label is missing"),
            ([0, 1, -1], "label -1 of row 2 is no class number"),
            ([0, 0.5, 1], "label 0.5 of row 1 is no class number"),
            ([0, float("nan"), 1], "label nan of row 1 is no class number"),
            ([[0], [1]], "has the type list"),
        ],
    )
    def test_labels_that_are_none_are_named(self, tmp_path, labels, reason):
        with pytest.raises(ValueError, match=rf"a\.parquet, column 'label'.*{reason}"):
            self.read(tmp_path, label=labels)

    def test_other_names_of_the_column(self, tmp_path, caplog):
        assert self.read(tmp_path, id=["1", "2"], person_id=["x", "x"]) == (["x", "x"], 1)
        assert "taken from the column" not in caplog.text
        assert self.read(tmp_path, name=["x", "y"]) == (["x", "y"], 2)
        assert "identities are taken from the column 'name'" in caplog.text
        for columns in ({"id": ["1", "2"], "name": ["x", "x"]}, {"face": ["x", "y"]}):
            with pytest.raises(ValueError, match=f"has the columns image, {', '.join(columns)}; expected"):
                self.read(tmp_path, **columns)


class TestLmdb:
    lmdb = pytest.importorskip("lmdb")

    def open(self, folder, entries):
        with self.lmdb.open(str(folder / "lmdb")) as environment, environment.begin(write=True) as transaction:
            for key, value in entries.items():
                transaction.put(key.encode(), value)
        return open_source(folder / "lmdb")

    def record(self, label, image=None):
        flag = len(label) if isinstance(label, list) else 0
        return pack(IRHeader(flag, label, 0), jpeg(0, 16) if image is None else image)

    def test_records_with_great_gaps(self, tmp_path, caplog):
        source = self.open(tmp_path, {"0": self.record(5_000_000), "1": self.record([7, 3])})
        assert source.labels(np.arange(2)).tolist() == [1, 0]
        assert (source.num_classes, source.identity(1)) == (2, "5000000")
        assert "labels up to 5000000 for 2 identities" in caplog.text

    def test_records_without_an_image(self, tmp_path, caplog):
        entries = {"0": self.record([3, 5], b""), "1": self.record(0), "2": self.record(1, b""), "3": self.record(1)}
        assert len(self.open(tmp_path, entries)) == 2
        assert "1 records without an image are left out" in caplog.text  # that of insightface's header is none

    @pytest.mark.parametrize(
        "value, reason",
        [
            (b"neither", "holds neither an image record,"),
            (pack(IRHeader(0, -1, 0), jpeg(0, 16)), "has label -1, which is no class number"),
            (pack(IRHeader(0, 0.5, 0), jpeg(0, 16)), "has label 0.5, which"),
            (jpeg(0, 16), "has no identity"),
        ],
    )
    def test_entries_that_are_none_are_named(self, tmp_path, value, reason):
        with pytest.raises(ValueError, match=f"key b'k' {reason}"):
            self.open(tmp_path, {"a": self.record(0), "k": value})

    def pair(self, image, label, **options):
        return pytest.importorskip("msgpack").packb((image, label), **options)

    @pytest.mark.parametrize("options", [{}, {"use_bin_type": False}])
    def test_pairs_of_image_and_label(self, tmp_path, options):
        """As imagelist2lmdb.py writes them, in one file, whose keys are numbers in the order of texts."""
        labels = [0, 1, 127, 128, 255, 256, 65535, 65536, 3, 3, 3, 4]
        images = [jpeg(n, 8 if n % 2 else 64) + bytes(70_000 * (n == 5)) for n in range(len(labels))]
        database = self.lmdb.open(str(tmp_path / "x.lmdb"), subdir=False, map_size=1 << 24)
        with database, database.begin(write=True) as transaction:
            for number, pair in enumerate(zip(images, labels)):
                transaction.put(b"%d" % number, self.pair(*pair, **options))
            transaction.put(b"__keys__", self.pair(b"0", b"1"))
            transaction.put(b"__len__", pytest.importorskip("msgpack").packb(len(labels)))
        for _ in range(2):  # found, and from the cache
            source = open_source(tmp_path / "x.lmdb")
            read, own = source.read(np.arange(len(labels)))
            assert [image.tobytes() for image in read] == images
            assert [int(source.identity(label)) for label in own.tolist()] == labels
            assert source.describe(10).startswith(f"{tmp_path / 'x.lmdb'} key b'10', label ")

    @pytest.mark.parametrize(
        "value, reason",
        [
            ((jpeg(0, 16), -3), "has label -3, which is no class number"),
            ((jpeg(0, 16), 1 << 63), "has label 9.22337.*, which is no class number"),
            ((jpeg(0, 16), 1.0), "holds neither"),
            ((jpeg(0, 16), None), "holds neither"),
            ((b"no image" * 20, 1), "holds neither"),
            ((jpeg(0, 16), 1, 2), "holds neither"),
        ],
    )
    def test_pairs_that_are_none_are_named(self, tmp_path, value, reason):
        packed = pytest.importorskip("msgpack").packb(value)
        with pytest.raises(ValueError, match=f"key b'1' {reason}"):
            self.open(tmp_path, {"0": self.pair(jpeg(0, 16), 0), "1": packed})

    def test_records_of_many_labels(self, tmp_path):
        source = self.open(tmp_path, {"0": self.record([4.0] * 100), "1": self.record([3.0] * 13)})
        assert source.labels(np.arange(2)).tolist() == [4, 3]
        assert [image.tobytes() for image in source.read(np.arange(2))[0]] == [jpeg(0, 16)] * 2

    def test_two_kinds_do_not_mix(self, tmp_path):
        with pytest.raises(ValueError, match="both images with labels and images called"):
            self.open(tmp_path, {"a": self.record(0), "x/1": jpeg(1, 16)})
