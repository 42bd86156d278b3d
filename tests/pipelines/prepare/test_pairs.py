"""Pairs by seed and by list, and splits by identity."""

import sys

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.prepare import __main__ as prepare
from pipelines.prepare.convert import convert
from pipelines.prepare.pairs import draw_pairs, read_pairs, split_identities
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin
from pipelines.sources.memory import MemorySource
from tests.pipelines.photos import people_in, write_folder


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    prepare.main()


class TestDrawnPairs:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(60), np.arange(60) % 7 + 1))

    def test_folds_are_balanced_and_share_nobody(self):
        pairs, same = draw_pairs(self.labels, 400, seed=3)
        people = self.labels[pairs]
        assert pairs.shape == (400, 2) and (people[:, 0] == people[:, 1]).tolist() == same.tolist()
        assert (pairs[:, 0] != pairs[:, 1]).all() and len({tuple(sorted(pair)) for pair in pairs.tolist()}) == 400
        folds = people.reshape(10, -1)
        assert (same.reshape(10, 40).sum(axis=1) == 20).all()
        everyone = [set(fold) for fold in folds.tolist()]
        assert sum(map(len, everyone)) == len(set.union(*everyone))

    def test_the_seed_decides(self):
        first, again, other = (draw_pairs(self.labels, 200, seed=seed)[0] for seed in (1, 1, 2))
        assert np.array_equal(first, again) and not np.array_equal(first, other)

    def test_every_pair_there_is_can_be_drawn(self):
        pairs, same = draw_pairs(np.repeat(np.arange(20), 2), 40, seed=0)  # a fold: two people, two genuine pairs
        assert same.sum() == 20 and len(np.unique(pairs[same])) == 40

    def test_images_without_a_label_are_nobodys(self):
        labels = np.concatenate([np.full(500, -1), np.repeat(np.arange(20), 3)])
        assert (draw_pairs(labels, 40, seed=0)[0] >= 500).all()

    def test_too_few(self):
        for count in (0, 10, 50, -20):
            with pytest.raises(ValueError, match="do not make 10 folds"):
                draw_pairs(self.labels, count, seed=0)
        for labels, kind in ((np.arange(40), "genuine"), (np.repeat(np.arange(10), 9), "impostor")):
            with pytest.raises(ValueError, match=f"{kind} pairs"):
                draw_pairs(labels, 20, seed=0)


def test_a_split_shares_nobody_and_loses_nothing(tmp_path, monkeypatch):
    people = write_folder(tmp_path / "faces", {f"p{n}": n % 3 + 1 for n in range(12)})
    call(monkeypatch, "split", tmp_path / "faces", tmp_path / "out", "--held-out", 5, "--seed", 4)
    train, heldout = (people_in(open_source(tmp_path / "out" / name)) for name in ("train", "heldout"))
    assert len(heldout) == 5 and not set(train) & set(heldout)
    assert train | heldout == people
    source = MemorySource([b"x"] * 4, np.arange(4))
    for count in (0, 4):
        with pytest.raises(ValueError, match="of 4 identities"):
            split_identities(source, count, seed=0)


class TestListedPairs:
    def test_from_a_folder_and_from_records(self, tmp_path, monkeypatch):
        people = write_folder(tmp_path / "faces", {"Ann_Lee": 3, "Bo Li": 2})
        lines = ["1\t2", "Ann_Lee\t1\t3", "Bo Li\t2\t1", "Ann_Lee\t2\tBo Li\t1", "Bo Li\t2\tAnn_Lee\t3", ""]
        (tmp_path / "pairs.txt").write_text("\n".join(lines))
        convert(open_source(tmp_path / "faces"), tmp_path / "records")
        ann, bo = people["Ann_Lee"], people["Bo Li"]
        for data in ("faces", "records"):
            call(monkeypatch, "pairs", tmp_path / data, tmp_path / "a.bin", "--pairs-file", tmp_path / "pairs.txt")
            made = read_bin(tmp_path / "a.bin")
            assert made.encoded == [ann[0], ann[2], bo[1], bo[0], ann[1], bo[0], bo[1], ann[2]]
            assert made.same.tolist() == [True, True, False, False]
        twice = tmp_path / "faces" / "Bo Li" / "Bo Li_0001.PNG"
        twice.write_bytes(bo[0])
        with pytest.raises(UserError, match=r"Bo Li_0001\.\w+ and .*Bo Li_0001\.\w+ may both be meant"):
            call(monkeypatch, "pairs", tmp_path / "faces", tmp_path / "b.bin", "--pairs-file", tmp_path / "pairs.txt")
        twice.unlink()
        (tmp_path / "faces" / "Bo Li" / "Bo Li_0001.jpg").unlink()  # image 2 must not become image 1
        with pytest.raises(FileNotFoundError, match=r"Bo Li_0001\.jpg"):
            call(monkeypatch, "pairs", tmp_path / "faces", tmp_path / "b.bin", "--pairs-file", tmp_path / "pairs.txt")
        command = "pairs", tmp_path / "records", tmp_path / "b.bin", "--pairs-file", tmp_path / "pairs.txt"
        for line, reason in (("Eve\t1\t2", "no identity 'Eve'"), ("Bo Li\t1\t3", "'Bo Li' has 2 images")):
            (tmp_path / "pairs.txt").write_text(f"1\n{line}")
            with pytest.raises(ValueError, match=reason):
                call(monkeypatch, *command)
        assert not (tmp_path / "b.bin").exists()

    @pytest.mark.parametrize("first", ["", "2\t1", "2", "4", "name,image,other,", "\ufeff2 1"])
    @pytest.mark.parametrize("separator", ["\t", ",", ", ", " ", " \t"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_layouts(self, tmp_path, first, separator, end, caplog):
        rows = [("Ann", "1", "3"), ("Bo", "2", "1"), ("Ann", "2", "Bo", "01"), ("Bo", "2", "Ann", "3")]
        lines = [first] * bool(first) + [separator.join(row) for row in rows] + ["", "  "]
        (tmp_path / "pairs.txt").write_bytes(end.join(lines).encode())
        pairs, same = read_pairs(tmp_path / "pairs.txt")
        assert pairs[0] == (("Ann", 1), ("Ann", 3)) and pairs[2] == (("Ann", 2), ("Bo", 1)) and len(pairs) == 4
        assert same.tolist() == [True, True, False, False]
        assert len(caplog.records) == (first[:1] == "n")  # a heading

    def test_a_count_that_is_wrong_is_told(self, tmp_path, caplog):
        (tmp_path / "pairs.txt").write_text("10 300\nA 1 2\n")
        assert len(read_pairs(tmp_path / "pairs.txt")[0]) == 1
        assert "announces 3000 pairs of each kind, there are 1 in all" in caplog.text

    def test_what_is_no_list(self, tmp_path):
        for text, reason in (
            ("1\nA 1", "line 2 is neither"),
            ("1\nA x 2", "line 2"),
            ("A x 2\nA 1 2", "line 1"),
            ("1 2 3 4 5\nA 1 2", "line 1"),
            ("1\n", "lists no pairs"),
            ("", "lists no pairs"),
        ):
            (tmp_path / "pairs.txt").write_text(text)
            with pytest.raises(ValueError, match=reason):
                read_pairs(tmp_path / "pairs.txt")

    def test_the_official_list(self, shared):
        pairs, same = read_pairs(shared / "faces" / "lfw_pairs.txt")
        assert len(pairs) == 6000
        assert same.reshape(10, 2, 300).all(axis=2).tolist() == [[True, False]] * 10
        assert pairs[0] == (("Abel_Pacheco", 1), ("Abel_Pacheco", 4))


def test_drawn_pairs_are_written(tmp_path, monkeypatch):
    people = write_folder(tmp_path / "faces", {f"p{n}": 3 for n in range(20)})
    call(monkeypatch, "pairs", tmp_path / "faces", tmp_path / "a.bin", "--count", 40)
    made = read_bin(tmp_path / "a.bin")
    owner = {image: name for name, images in people.items() for image in images}
    assert [owner[a] == owner[b] for a, b in zip(made.encoded[::2], made.encoded[1::2])] == made.same.tolist()
    assert made.same.sum() == 20
