"""RecordIO files, folders and memory as sources of encoded images."""

import os

import numpy as np
import pytest

from pipelines.sources import READERS, open_source
from pipelines.sources.folder import FolderSource
from pipelines.sources.memory import MemorySource
from pipelines.sources.rec import RecordSource
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_writer import RecordWriter, write_dataset

SIZES = [3, 1, 2]
IMAGES = [[f"image {n} of {label}".encode() for n in range(size)] for label, size in enumerate(SIZES)]
LABELS = [0, 0, 0, 1, 2, 2]


def write_folder(root):
    for name, images in zip(["a", "c", "b"], [IMAGES[0], IMAGES[2], IMAGES[1]]):
        (root / name).mkdir(parents=True)
        for n, image in enumerate(images):
            (root / name / f"{n}{['.jpg', '.PNG', '.webp'][n]}").write_bytes(image)
    return root


def sources(folder):
    write_dataset(folder / "records", IMAGES)
    yield open_source(folder / "records")
    yield open_source(str(folder / "records" / "train.rec"))
    yield open_source(write_folder(folder / "folder"))
    yield MemorySource(sum(IMAGES, []), np.array(LABELS))


def test_every_source_gives_the_same(tmp_path):
    for source in sources(tmp_path):
        assert (len(source), source.num_classes) == (6, 3)
        indices = np.array([5, 0, 3, 3, 1])
        encoded, labels = source.read(indices)
        assert [image.tobytes() for image in encoded] == [sum(IMAGES, [])[index] for index in indices]
        assert all((image.dtype, image.ndim) == (np.uint8, 1) for image in encoded)
        assert (labels.tolist(), labels.dtype) == ([LABELS[index] for index in indices], np.int64)
        source.prefetch(indices)
        assert "label 2" in source.describe(4)
        for few in (indices[:0], indices[:1]):
            source.prefetch(few)
            encoded, labels = source.read(few)
            assert len(encoded) == len(labels) == len(few) and labels.dtype == np.int64


def test_describe_names_the_place(tmp_path):
    records, _, folder, memory = sources(tmp_path)
    assert records.describe(4) == "train.rec record 5 at byte 216, label 2"
    assert folder.describe(1) == f"{tmp_path}/folder/a/1.PNG, label 0"
    assert memory.describe(1) == "memory, image 1, label 0"


class TestOpenSource:
    def test_what_is_no_data_set_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no data set at .*nowhere"):
            open_source(tmp_path / "nowhere")
        (tmp_path / "photo.jpg").write_bytes(b"jpg")
        with pytest.raises(ValueError, match=r"photo\.jpg is no data set"):
            open_source(tmp_path / "photo.jpg")
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path, tmp_path / "empty"):
            with pytest.raises(ValueError, match=rf"{folder} holds neither train\.rec nor identity/\*\.jpg"):
                open_source(folder)

    def test_a_reader_of_ones_own_takes_files_globs_and_folders(self, tmp_path, monkeypatch):
        for name in ("b", "a"):
            (tmp_path / f"{name}.pages").write_bytes(name.encode())
        (tmp_path / "faces.txt").write_text("a list beside them")
        read = []
        monkeypatch.setitem(READERS, ".pages", lambda paths: read.append(paths) or MemorySource([b"x"] * len(paths)))
        for path in (tmp_path / "a.pages", tmp_path / "*.pages", tmp_path):
            open_source(path)
        assert [[path.stem for path in paths] for paths in read] == [["a"], ["a", "b"], ["a", "b"]]

    def test_a_format_without_shards_is_asked_for_by_one_name(self, tmp_path):
        for name in ("a", "b"):
            write_dataset(tmp_path, IMAGES, name=name)
        with pytest.raises(ValueError, match=r"a\.rec is one of 2 \.rec files: name the one that is meant"):
            open_source(tmp_path / "*.rec")
        with pytest.raises(ValueError, match=r"a\.idx is no data set"):
            open_source(tmp_path / "a.*")

    def test_a_folder_with_records_of_another_name_asks_for_it(self, tmp_path):
        write_dataset(tmp_path, IMAGES, name="other")
        with pytest.raises(ValueError, match=r"no train\.rec; name the file that is meant: .*other\.rec"):
            open_source(tmp_path)
        assert len(open_source(tmp_path / "other.rec")) == 6


class TestFolders:
    def test_only_images_of_identities_count(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "a" / "notes.txt").write_bytes(b"no image")
        (tmp_path / "a" / "._0.jpg").write_bytes(b"what some systems leave behind")
        (tmp_path / "a" / "deeper").mkdir()
        (tmp_path / "a" / "deeper" / "0.jpg").write_bytes(b"too deep")
        (tmp_path / ".hidden").mkdir()
        (tmp_path / ".hidden" / "0.jpg").write_bytes(b"hidden")
        (tmp_path / "aa").mkdir()  # an identity without images is no class
        (tmp_path / "list.jpg").write_bytes(b"not in a folder")
        source = FolderSource(tmp_path)
        assert (len(source), source.num_classes) == (6, 3)
        assert source.read(np.arange(6))[1].tolist() == LABELS

    def test_what_is_left_out_is_counted_and_named(self, tmp_path, caplog):
        write_folder(tmp_path)
        FolderSource(tmp_path)
        assert not caplog.records
        for name in ("a/9.gif", "a/8.GIF", "b/frame.0001", "lost/1.heic", "bare/1", "notes/1.txt", "0.jpg", "list.csv"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"no image")
        for name in ("deep/er", "a/.cache"):
            (tmp_path / name).mkdir(parents=True)
        source = FolderSource(tmp_path)
        assert (len(source), source.num_classes) == (6, 3)
        assert caplog.messages == [
            f"{tmp_path}: left out: 7 files (.gif 2, no suffix 2, not in a folder 1, folder 1, .heic 1)"
            " of 5 identities, and 4 identities that have no images: bare, deep, lost, notes"
        ]

    def test_where_everything_is_left_out_it_says_what(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "0.heic").write_bytes(b"an image of an unknown kind")
        with pytest.raises(ValueError, match=r"holds neither train\.rec nor identity.*it has 1 files \(\.heic 1\)"):
            open_source(tmp_path)

    def test_names_that_are_not_utf_8(self, tmp_path, caplog):
        for name in ("Jos\udce9/\udce9.jpg", "\udcff/1.gif", "b/1.jpg"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(b"image")
        source = open_source(tmp_path)
        assert source.identity(0) == "Jos\udce9"
        assert source.describe(0) == f"{tmp_path}/Jos\udce9/\udce9.jpg, label 0"
        assert r"no images: \udcff" in caplog.text
        assert source.read(np.arange(2))[1].tolist() == [0, 1]

    def test_links(self, tmp_path):
        write_folder(tmp_path / "real")
        root = tmp_path / "linked"
        root.mkdir()
        (root / "a").symlink_to(tmp_path / "real" / "a")
        (root / "loop").symlink_to(root)
        (root / "itself").symlink_to(root / "itself")
        (root / "broken").symlink_to(root / "nowhere")
        source = FolderSource(root)
        assert (len(source), source.num_classes) == (3, 1)
        assert source.read(np.arange(3))[0][2].tobytes() == IMAGES[0][2]

    def test_files_that_vanished_or_are_empty_are_named(self, tmp_path):
        source = FolderSource(write_folder(tmp_path))
        (tmp_path / "a" / "0.jpg").unlink()
        (tmp_path / "b" / "0.jpg").write_bytes(b"")
        with pytest.raises(OSError, match=r"a/0\.jpg"):
            source.read(np.array([2, 0]))
        with pytest.raises(ValueError, match=r"b/0\.jpg is empty"):
            source.read(np.array([2, 3]))


class TestRecords:
    def write(self, folder, labels, images=None):
        with RecordWriter(folder / "a.rec") as writer:
            for key, label in enumerate(labels):
                writer.write(key, pack(IRHeader(0, label, key), images[key] if images else b"image"))
        return folder / "a.rec"

    def test_the_first_of_several_labels_is_the_class(self, tmp_path):
        source = RecordSource(self.write(tmp_path, [3, [1, 99, 98], [2, 7]]))
        assert source.read(np.arange(3))[1].tolist() == [3, 1, 2]
        assert source.num_classes == 4

    def test_great_labels_stay_exact(self, tmp_path):
        labels = [0, 2**24, 2**24 - 1, 12_345_677]
        (tmp_path / "property").write_text(f"{2**24 + 1},112,112")
        source = RecordSource(self.write(tmp_path, labels))
        assert source.read(np.arange(4))[1].tolist() == labels

    def test_more_classes_than_float32_tells_apart_are_warned_of(self, tmp_path, caplog):
        (tmp_path / "property").write_text(f"{2**24 + 3},112,112")
        RecordSource(self.write(tmp_path, [2**24 + 2]))
        assert "float32 labels" in caplog.text

    @pytest.mark.parametrize("label", [1.5, np.nan, np.inf, -np.inf, 2.0**80])
    def test_a_label_that_is_no_whole_number_is_named(self, tmp_path, label):
        rec = self.write(tmp_path, [0, 3, label])
        rec.with_name("property").write_text("4,112,112")
        source = RecordSource(rec)
        at = np.loadtxt(rec.with_suffix(".idx"), np.int64)[2, 1]
        with pytest.raises(ValueError, match=rf"a\.rec record 2 at byte {at}: label \S+ is no class number"):
            source.read(np.array([0, 2]))
        assert source.read(np.array([0, 1]))[1].tolist() == [0, 3]
        assert source.describe(2).startswith(f"a.rec record 2 at byte {at}, label")

    def test_labels_beyond_the_class_count_are_for_the_caller_to_judge(self, tmp_path):
        rec = self.write(tmp_path, [0, 3, -1])
        rec.with_name("property").write_text("2,112,112")
        source = RecordSource(rec)
        assert (source.num_classes, source.read(np.arange(3))[1].tolist()) == (2, [0, 3, -1])

    def test_a_record_without_an_image_is_named(self, tmp_path):
        source = RecordSource(self.write(tmp_path, [0, 1, 0], [b"image", b"", b"image"]))
        with pytest.raises(ValueError, match=r"record 1 at byte \d+: the record holds no image"):
            source.read(np.arange(3))

    def test_describe_bears_damage(self, tmp_path):
        rec = self.write(tmp_path, [0, 1, 2])
        source = RecordSource(rec)
        content = bytearray(rec.read_bytes())
        content[0] ^= 1
        with rec.open("r+b") as file:  # in place: the source has the file mapped
            file.write(content)
        assert source.describe(0) == "a.rec record 0 at byte 0"
        with pytest.raises(ValueError, match="a.rec record 0 at byte 0"):
            source.read(np.array([0]))

    def test_prefetch_hints_at_just_those_records(self, tmp_path, monkeypatch):
        write_dataset(tmp_path, [[b"x" * n for n in range(1, 9)]])
        offsets = np.loadtxt(tmp_path / "train.idx", np.int64)[:, 1]
        hints = []
        monkeypatch.setattr(
            os, "posix_fadvise", lambda fd, begin, length, advice: hints.append((begin, begin + length))
        )
        source = open_source(tmp_path)
        source.prefetch(np.array([5, 1, 0, 7, 5, 2]))
        assert hints == [(offsets[1], offsets[4]), (offsets[6], offsets[7]), (offsets[8], offsets[9])]


def test_memory_without_labels():
    source = MemorySource([b"a", np.frombuffer(b"bc", np.uint8)])
    encoded, labels = source.read(np.array([1, 0]))
    assert [image.tobytes() for image in encoded] == [b"bc", b"a"]
    assert (labels.tolist(), labels.dtype, source.num_classes) == ([-1, -1], np.int64, 0)
    assert source.describe(1) == "memory, image 1"
    assert MemorySource([b"a"], name="sets/lfw.bin").describe(0) == "sets/lfw.bin, image 0"
    with pytest.raises(ValueError, match="2 images with 1 labels"):
        MemorySource([b"a", b"b"], [0])


def test_real_records_carry_the_labels_of_their_list(shared):
    """The file's own list, key - label - name, is an independent record of what ``im2rec`` wrote."""
    folder = shared / "faces" / "recordio"
    source = open_source(folder / "validation.rec")
    encoded, labels = source.read(np.arange(len(source)))
    listed = np.loadtxt(folder / "validation.lst", usecols=1)
    assert labels.tolist() == listed.tolist()
    assert source.num_classes == 25
    assert all(image[:2].tobytes() == b"\xff\xd8" and image[-2:].tobytes() == b"\xff\xd9" for image in encoded)


def test_real_folder_and_its_records_are_the_same(shared, tmp_path):
    folder = open_source(shared / "faces" / "celeba297")
    assert (len(folder), folder.num_classes) == (6237, 297)
    _, labels = folder.read(np.arange(len(folder)))
    by_class = np.split(np.arange(len(folder)), np.flatnonzero(np.diff(labels)) + 1)
    assert write_dataset(tmp_path, (folder.read(indices)[0] for indices in by_class)) == (297, 6237)
    records = open_source(tmp_path)
    assert (len(records), records.num_classes) == (6237, 297)
    sample = np.random.default_rng(0).permutation(6237)[:500]
    for ours, theirs in zip(records.read(sample), folder.read(sample)):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))


class TestFingerprint:
    def test_is_the_same_at_every_start(self, tmp_path):
        first, second = ([source.fingerprint() for source in sources(tmp_path / name)] for name in "ab")
        assert first == second
        assert all(0 <= number < 1 << 32 for number in first)

    def test_tells_data_sets_of_one_size_apart(self, tmp_path):
        found = set()
        for number, images in enumerate(
            (IMAGES, [IMAGES[1], IMAGES[0], IMAGES[2]], [*IMAGES[:2], [*IMAGES[2][:1], b"longer than that"]])
        ):
            write_dataset(tmp_path / str(number), images)
            found.add(open_source(tmp_path / str(number)).fingerprint())
        assert len(found) == 3
        labels = [[0, 0, 1], [0, 1, 1], [0, 1, 0]]
        assert len({MemorySource([b"x"] * 3, np.array(of)).fingerprint() for of in labels}) == 3
        assert MemorySource([b"x"] * 2).fingerprint() != MemorySource([b"x"] * 3).fingerprint()

    def test_reads_few_records(self, tmp_path, monkeypatch):
        write_dataset(tmp_path, [[b"x"] * 2000] * 2)
        source = open_source(tmp_path)
        asked = []
        monkeypatch.setattr(source, "labels", lambda indices: asked.extend(indices) or np.zeros(len(indices), np.int64))
        source.fingerprint()
        assert len(asked) == 1024 and asked[-1] == 3999
