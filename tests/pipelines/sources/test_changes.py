"""Several data sets as one, and corrections of labels: against dictionaries of whose image is where."""

import json
import sys

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.prepare import __main__ as prepare
from pipelines.sources import open_source, open_sources
from pipelines.sources.changes import NOBODY, ChangedSource, Changes, read_changes
from pipelines.sources.joined import JoinedSource
from pipelines.sources.memory import MemorySource
from tests.pipelines.photos import people_in, write_folder


def memory(labels, letter="x"):
    return MemorySource([f"{letter}{n}".encode() for n in range(len(labels))], np.array(labels), name=letter)


class TestJoined:
    def test_images_and_classes_follow_one_another(self):
        source = JoinedSource({"a": memory([1, 0, 1], "a"), "b": memory([0, 2], "b"), "c": memory([0], "c")})
        assert (len(source), source.num_classes) == (6, 2 + 3 + 1)
        images, labels = source.read(np.array([4, 0, 5, 3, 1, 4]))
        assert [image.tobytes() for image in images] == [b"b1", b"a0", b"c0", b"b0", b"a1", b"b1"]
        assert labels.tolist() == [4, 1, 5, 2, 0, 4] == source.labels(np.array([4, 0, 5, 3, 1, 4])).tolist()
        assert [source.identity(label) for label in (0, 1, 2, 4, 5, 9)] == ["a/0", "a/1", "b/0", "b/2", "c/0", "9"]
        assert source.describe(4) == "b: b, image 1, label 2"

    def test_a_label_that_is_no_class_of_its_set_is_nobody_of_the_next(self):
        first = memory([0, -1, 1])
        first.num_classes = 1
        assert JoinedSource({"a": first, "b": memory([0])}).labels(np.arange(4)).tolist() == [0, -1, -1, 1]

    def test_fingerprints_tell_sets_and_their_order_apart(self):
        one, other = memory([0, 1]), memory([1, 0])
        sets = [{"a": one, "b": other}, {"a": other, "b": one}, {"a": one}, {"a": one, "b": one}]
        assert len({JoinedSource(some).fingerprint() for some in sets}) == 4


class TestChanged:
    def test_labels_and_names(self):
        source = memory([0, 0, 1, 1, 2])
        changes = Changes.of(source, {3: (4, "another"), 1: (NOBODY, "nobody"), 2: (0, "moved"), 4: (3, "new")})
        changed = ChangedSource(source, [changes])
        assert (
            changed.labels(np.array([4, 3, 2, 1, 0])).tolist()
            == [3, 4, 0, -1, 0]
            == changed.read(np.array([4, 3, 2, 1, 0]))[1].tolist()
        )
        assert changed.num_classes == 5
        assert [changed.identity(label) for label in (1, 3, 4)] == ["1", "2~3", "1~4"]
        assert changed.describe(1).endswith("image 1, label 0, left out: nobody")
        assert changed.describe(0) == source.describe(0)
        assert changed.fingerprint() != source.fingerprint()

    def test_of_several_the_one_that_leaves_out_counts_and_new_people_stay_apart(self):
        source = memory([0, 0, 1, 1])
        first = Changes.of(source, {0: (1, "a"), 1: (2, "new")})
        second = Changes.of(source, {0: (NOBODY, "b"), 1: (NOBODY, "c"), 2: (2, "new, another"), 3: (0, "d")})
        assert ChangedSource(source, [first, second]).labels(np.arange(4)).tolist() == [-1, -1, 3, 0]
        assert ChangedSource(source, [second, first]).labels(np.arange(4)).tolist() == [-1, -1, 2, 0]

    def test_no_change_is_none(self):
        source = memory([0, 1])
        assert ChangedSource(source, [Changes.of(source, {})]).labels(np.arange(2)).tolist() == [0, 1]

    def test_a_class_far_away_is_refused(self):
        source = memory([0, 1])
        with pytest.raises(UserError, match="new class 77 of image 1 is too large: new ones begin with 2"):
            ChangedSource(source, [Changes.of(source, {1: (77, "")})])


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path):
        source = memory([0, 0, 1])
        changes = Changes.of(source, {2: (5, "why\nnot\t\udc80"), 0: (NOBODY, "")})
        changes.save(tmp_path / "changes.txt")
        back = read_changes(tmp_path / "changes.txt")
        assert back.fits(source) and not back.fits(memory([0, 1, 1])) and not back.fits(memory([0, 0, 1, 1]))
        assert (back.images.tolist(), back.labels.tolist()) == ([0, 2], [NOBODY, 5])
        assert back.reasons[1] == "why\\nnot\\t\\udc80"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "does not begin with '# for N images, fingerprint M'"),
            ("1\t-\n", "does not begin with"),
            ("# for 3 images, fingerprint 5\n1 -\n", "line 2 is not 'image<TAB>class or -<TAB>why': '1 -'"),
            ("# for 3 images, fingerprint 5\n\n1\t-2\n", "line 3 is not"),
            ("# for 3 images, fingerprint 5\n3\t-\n", "line 2: there is no image 3 among 3"),
            ("# for 3 images, fingerprint 5\n1\t-\n# yes\n1\t0\n", "line 4: image 1 is changed twice"),
        ],
    )
    def test_what_is_no_change_is_told_by_its_line(self, tmp_path, text, said):
        (tmp_path / "changes.txt").write_text(text)
        with pytest.raises(UserError, match=said):
            read_changes(tmp_path / "changes.txt")


class TestConvert:
    @pytest.fixture
    def two(self, tmp_path):
        return [write_folder(tmp_path / name, {"anna": 3, "ben": 2 + (name == "b")}) for name in ("a", "b")]

    def convert(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["prepare", "convert", *map(str, arguments)])
        prepare.main()

    def test_several_sets_with_changes_of_one_and_of_all(self, tmp_path, two, monkeypatch, capsys):
        first, second = two
        of_b = Changes.of(open_source(tmp_path / "b"), {1: (2, "somebody else"), 3: (0, "it is Anna")})
        of_b.save(tmp_path / "b.txt")
        of_all = Changes.of(open_sources([tmp_path / "a", tmp_path / "b"]), {4: (3, "Ben of b"), 5: (NOBODY, "noise")})
        of_all.save(tmp_path / "all.txt")
        self.convert(
            monkeypatch,
            tmp_path / "a",
            tmp_path / "b",
            tmp_path / "out",
            *("--changes", tmp_path / "all.txt", tmp_path / "b.txt"),
        )
        people = people_in(open_source(tmp_path / "out"))
        assert people == {
            "a/anna": first["anna"],
            "a/ben": first["ben"][:1],
            "b/anna": [second["anna"][2], second["ben"][0]],
            "b/ben": [first["ben"][1], *second["ben"][1:]],
            "b/anna~4": [second["anna"][1]],
        }
        assert json.loads((tmp_path / "out" / "identities.json").read_text()) == [*people]
        (left_out,) = map(json.loads, (tmp_path / "out" / "left_out.jsonl").read_text().splitlines())
        assert left_out["image"].endswith("b/anna/anna_0001.jpg, label 0, left out: noise")
        assert "10 images of 5 identities" in capsys.readouterr().out

    def test_changes_of_other_data_and_shards_of_one_set_are_refused(self, tmp_path, two, monkeypatch):
        Changes.of(memory([0, 1]), {0: (1, "")}).save(tmp_path / "x.txt")
        with pytest.raises(UserError, match=r"x\.txt was made for other data, .* than a, b"):
            self.convert(monkeypatch, tmp_path / "a", tmp_path / "b", tmp_path / "out", "--changes", tmp_path / "x.txt")
        write_folder(tmp_path / "c", {"anna": 3, "ben": 2})
        Changes.of(open_source(tmp_path / "c"), {0: (1, "")}).save(tmp_path / "x.txt")
        with pytest.raises(UserError, match=r"x\.txt fits a and c alike"):
            self.convert(monkeypatch, tmp_path / "a", tmp_path / "c", tmp_path / "out", "--changes", tmp_path / "x.txt")
        self.convert(monkeypatch, tmp_path / "a", tmp_path / "s", "--to", "webdataset", "--shard-size", "3")
        with pytest.raises(UserError, match="are shards of one set: name their folder, or quote the glob"):
            self.convert(monkeypatch, *sorted((tmp_path / "s").glob("*.tar")), tmp_path / "out")
