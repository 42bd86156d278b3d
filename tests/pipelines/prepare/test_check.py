"""What ``check`` finds in data sets with planted faults, and that ``repair`` loses nothing else."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.common import header
from pipelines.common.command import run
from pipelines.common.errors import UserError
from pipelines.common.header import HeaderReader
from pipelines.loading.quarantine import Quarantine
from pipelines.prepare import __main__ as prepare
from pipelines.prepare import check as check_module
from pipelines.prepare import reading
from pipelines.prepare.check import KINDS, check
from pipelines.prepare.duplicates import groups_of, near_pairs, picture_hashes
from pipelines.sources import open_source
from pipelines.sources.memory import MemorySource
from pipelines.sources.rec import RecordSource
from pipelines.sources.recordio import IRHeader, pack
from pipelines.sources.recordio_index import scan
from pipelines.sources.recordio_writer import RecordWriter
from tests.pipelines.photos import encoded, jpeg, people_in, picture, write_folder


def found(report):
    return {kind: sorted(report.problems[kind]) for kind in KINDS if report.problems[kind]}


@pytest.fixture
def command(monkeypatch, capfd):
    """Run a command: its exit status, and what it wrote to the two outputs."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        try:
            run(prepare.main)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return call


FILES = {
    "good": jpeg(0),
    "truncated": jpeg(1)[:-300],
    "cut in its header": jpeg(2)[:100],
    "text": b"<html>404 Not Found</html>",
    "gif": encoded(picture(3), "GIF"),
    "png": encoded(picture(4), "PNG"),
    "truncated png": encoded(picture(5), "PNG")[:900],
    "webp": encoded(picture(6), "WEBP"),
    "bmp": encoded(picture(7), "BMP"),
    "cmyk": encoded(picture(8).convert("CMYK")),
    "grey": encoded(picture(9).convert("L")),
    "grey in three channels": encoded(picture(10).convert("L").convert("RGB")),
    "small": jpeg(11, 40),
    "wide": encoded(picture(12).resize((160, 112))),
    "copy of good": jpeg(0),
    "smaller file of good": encoded(picture(0), quality=40),
}
UNREADABLE = {"truncated", "cut in its header", "text", "gif", "truncated png"}


def test_every_kind_of_file_has_its_outcome():
    names = list(FILES)
    source = MemorySource(list(FILES.values()), np.arange(len(FILES)) % 2)
    report = check(source, threads=1)
    named = {kind: {names[index] for index in indices} for kind, indices in found(report).items()}
    assert named == {
        "unreadable": UNREADABLE,
        "grey": {"grey", "grey in three channels"},
        "wrong_size": {"small", "wide"},
        "duplicate": {"copy of good"},
        "near_duplicate": {"smaller file of good"},
    }
    assert not report.sound
    assert "memory, image 12, label 0: 40 x 40 pixels" in report.problems["wrong_size"].values()
    assert [*report.problems["duplicate"].values()] == [
        "memory, image 14, label 0: has the bytes of memory, image 0, label 0"
    ]
    assert [*report.problems["near_duplicate"].values()] == [
        "memory, image 15, label 1: looks like memory, image 0, label 0 of another identity"
    ]
    assert set(report.bad_images("grey", "duplicate")) == {names.index(n) for n in named["grey"] | named["duplicate"]}


def test_faults_in_any_place_of_any_batch(monkeypatch):
    """Batches with none, some, or nothing but faults, where the last one is short."""
    for module in (reading, check_module):
        monkeypatch.setattr(module, "CHUNK", 4)
    rng = np.random.default_rng(0)
    bad = rng.random(43) < 0.3
    bad[8:12] = True
    images = [jpeg(n, 112)[: -200 if bad[n] else None] for n in range(43)]
    report = check(MemorySource(images, np.zeros(43, np.int64)), threads=2)
    assert found(report) == {"unreadable": np.flatnonzero(bad).tolist()}
    report = check(MemorySource(images[8:12], np.zeros(4, np.int64)), threads=1)
    assert found(report) == {"unreadable": [0, 1, 2, 3], "empty_identity": [0]}


def test_identities_and_labels(tmp_path):
    labels = [0, 0, 3, 9, 2**23, 1, 1, np.nan]
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack(IRHeader(0, label, key), jpeg(key)))
        writer.write(8, pack(IRHeader(0, 3, 8), jpeg(8)[:200]))  # which does not count
    (tmp_path / "property").write_text("5,112,112")
    report = check(RecordSource(tmp_path / "a.rec"), threads=1)
    assert found(report) == {
        "unreadable": [7, 8],
        "label_out_of_range": [3, 4],
        "empty_identity": [2, 4],
        "tiny_identity": [3],
    }
    assert "a.rec record 3 at byte" in report.problems["label_out_of_range"][3]
    assert found(check(RecordSource(tmp_path / "a.rec"), tiny=1, threads=1)).get("tiny_identity") is None


def test_ten_thousand_tiny_identities():
    image = jpeg(0, 16)
    report = check(MemorySource([image] * 10_000, np.arange(10_000)), threads=2)
    assert len(report.problems["tiny_identity"]) == 10_000 and report.sound
    assert len(report.problems["duplicate"]) == 9_999


class TestCommands:
    def damaged(self, folder, command):
        people = write_folder(folder / "faces", {"a": 3, "b": 2, "c": 1})
        assert command("convert", folder / "faces", folder / "records")[0] == 0
        rec = folder / "records" / "train.rec"
        content = bytearray(rec.read_bytes())
        offsets, _ = scan(rec)
        content[offsets[2] + 500 : offsets[2] + 700] = bytes(200)  # within image 2 of a
        struct.pack_into("<f", content, offsets[4] + 12, 77)  # the label of image 1 of b
        content[offsets[6] + 10] = 1  # the record of c, which now announces 65 536 labels
        rec.write_bytes(content)
        return people

    def test_check_and_repair(self, tmp_path, command):
        people = self.damaged(tmp_path, command)
        status, said, _ = command("check", tmp_path / "records", "--report", tmp_path / "report.json")
        report = json.loads((tmp_path / "report.json").read_text())
        assert (status, report["images"], report["counts"]["unreadable"]) == (1, 6, 2)
        assert [index for index, _ in report["problems"]["unreadable"]] == [1, 5]
        assert [index for index, _ in report["problems"]["label_out_of_range"]] == [3]
        assert [text for _, text in report["problems"]["empty_identity"]] == ["c: no image"]
        assert "train.rec record 2 at byte" in said
        assert "training would stumble over 3 images: 'prepare repair' leaves them out" in said
        status, said, told = command("check", tmp_path / "records", "--json")
        assert status == 1 and json.loads(said) == report and "training would stumble over 3 images" in told

        status, said, _ = command("repair", tmp_path / "records", tmp_path / "repaired")
        assert status == 0 and "3 bad images were dropped" in said
        assert people_in(open_source(tmp_path / "repaired")) == {
            "a": [people["a"][0], people["a"][2]],
            "b": [people["b"][1]],
        }
        listed = np.loadtxt(tmp_path / "repaired" / "train.idx", np.int64)[:, 1]
        assert listed.tolist() == scan(tmp_path / "repaired" / "train.rec")[0].tolist()
        assert command("check", tmp_path / "repaired")[0] == 0

    def test_missing_images_count_as_training_counts_them(self, tmp_path, command):
        """A file that was copied in part: what is there is sound, and the rest is not there."""
        write_folder(tmp_path / "faces", {"a": 3, "b": 4, "c": 3})
        assert command("convert", tmp_path / "faces", tmp_path / "records")[0] == 0
        assert command("check", tmp_path / "records", "--json")[0] == 0
        rec = tmp_path / "records" / "train.rec"
        offsets, _ = scan(rec)
        rec.write_bytes(rec.read_bytes()[: offsets[7] + 100])  # within the seventh of ten images
        with pytest.raises(UserError, match=r"4 of 10 images are missing.*cut short or damaged; copy it again"):
            Quarantine(open_source(rec), max_fraction=0.001, path=None)
        status, said, _ = command("check", tmp_path / "records")
        told = f"4 of 10 images, which are missing: {rec} is cut short or damaged; copy it again\n"
        assert status == 1 and f"training would stumble over {told}" in said
        status, said, _ = command("check", tmp_path / "records", "--json")
        assert (status, json.loads(said)["images"], json.loads(said)["missing"]) == (1, 6, 4)
        assert "copy it again" in json.loads(said)["shortage"]
        content = bytearray(rec.read_bytes())
        content[offsets[2] + 500 : offsets[2] + 700] = bytes(200)
        rec.write_bytes(content)
        status, said, _ = command("check", tmp_path / "records")
        assert status == 1 and "stumble over 1 images: 'prepare repair' leaves them out; over " + told in said
        for words in (["repair"], ["convert"]):
            status, said, _ = command(*words, tmp_path / "records", tmp_path / words[0])
            assert status == 0 and "4 images are missing and cannot be brought back" in said and "copy it again" in said

    @pytest.mark.parametrize(
        "words",
        [
            ["convert", "{data}", "{out}"],
            ["align", "{data}", "{out}", "--landmarks"],
            ["repair", "{data}", "{out}"],
            ["split", "{data}", "{above}", "--held-out", "1"],
        ],
    )
    def test_what_is_in_the_way_is_told_before_the_work(self, tmp_path, command, monkeypatch, words):
        """Before the data, here none, are so much as opened, and before half of it is written."""
        out = tmp_path / "above" / "heldout"
        out.mkdir(parents=True)
        (out / "thesis.txt").write_text("years of work")
        names = {"data": tmp_path / "none", "out": out, "above": out.parent}
        status, _, error = command(*(word.format(**names) for word in words))
        assert (status, error) == (2, f"error: {out} exists already; remove it or name another folder\n")
        assert [path.name for path in out.parent.iterdir()] == ["heldout"]

    @pytest.mark.parametrize(
        "words, message",
        [
            (["convert", "x", "out", "--shard-size", "5"], "--shard-size is for --to webdataset"),
            (["convert", "x", "out", "--quality", "101"], "argument --quality: 101 is more than 100"),
            (["convert", "x", "out", "--quality", "0"], "argument --quality: 0 is less than 1"),
            (["align", "x", "out", "--landmarks", "--quality", "300"], "argument --quality: 300 is more than 100"),
            (["pairs", "x", "o.bin", "--pairs-file", "p", "--count", "20"], "--count and --seed are for drawn pairs"),
            (["pairs", "x", "o.bin", "--pairs-file", "p", "--seed", "0"], "--count and --seed are for drawn pairs"),
            (["inspect", "x", "--rows", "3"], "--rows and --columns are for --sheet and --html"),
        ],
    )
    def test_options_that_would_do_nothing_are_refused(self, command, words, message):
        status, said, error = command(*words)
        assert (status, said) == (2, "") and f"prepare {words[0]}: error: {message}" in error

    def test_repair_drops_what_is_asked_for(self, tmp_path, command):
        for name in ("0", "1"):
            (tmp_path / "faces" / name).mkdir(parents=True)
            (tmp_path / "faces" / name / "a.jpg").write_bytes(jpeg(0))
            (tmp_path / "faces" / name / "b.jpg").write_bytes(jpeg(1 + int(name)))
        assert command("repair", tmp_path / "faces", tmp_path / "out", "--drop", "duplicate")[0] == 0
        assert people_in(open_source(tmp_path / "out")) == {"0": [jpeg(0), jpeg(1)], "1": [jpeg(2)]}
        status, _, said = command("repair", tmp_path / "faces", tmp_path / "other", "--drop", "ugly")
        assert status == 2 and "argument --drop: invalid choice: 'ugly'" in said


def test_bad_files_among_good_ones_are_left_out_and_named(tmp_path, command):
    """What cannot be taken over is listed, the rest is there bit for bit."""
    people = write_folder(tmp_path / "faces", {"a b": 2, "ü": 1})
    bad = {"zero.jpg": b"", "text.jpg": b"no image"}
    for name, content in bad.items():
        (tmp_path / "faces" / "a b" / name).write_bytes(content)
    (tmp_path / "faces" / "only bad").mkdir()
    (tmp_path / "faces" / "only bad" / "x.png").write_bytes(b"")
    (tmp_path / "faces" / "a b" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "faces" / "around").symlink_to(tmp_path / "faces")
    status, said, _ = command("convert", tmp_path / "faces", tmp_path / "out")
    assert status == 0 and "4 images were left out" in said
    listed = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line["image"].split("/")[-1].split(",")[0] for line in listed) == [
        "loop.jpg",
        "text.jpg",
        "x.png",
        "zero.jpg",
    ]
    assert all(line["reason"] for line in listed)
    assert people_in(open_source(tmp_path / "out")) == people
    assert json.loads((tmp_path / "out" / "identities.json").read_text()) == list(people)

    shutil.rmtree(tmp_path / "faces" / "ü")
    for file in (tmp_path / "faces" / "a b").glob("a*"):
        file.unlink()
    status, _, said = command("convert", tmp_path / "faces", tmp_path / "nothing")
    assert status == 2 and "no image could be read" in said and not list(tmp_path.glob("*nothing*"))


def test_a_full_disk_leaves_nothing_under_the_name(tmp_path):
    """A file-size limit stands in for the disk: writing ends with an ``OSError`` in the middle of a record."""
    write_folder(tmp_path / "faces", {"a": 30})
    limited = f"ulimit -f 20; exec {sys.executable} -m pipelines.prepare convert {tmp_path}/faces {tmp_path}/out"
    ended = subprocess.run(["bash", "-c", f"trap '' XFSZ; {limited}"], capture_output=True)
    assert ended.returncode == 2 and ended.stderr.startswith(b"error: ") and b"large" in ended.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.partial").glob("*.rec")) and not list(tmp_path.glob(".out.partial/.*.tmp"))


class TestHeaders:
    @pytest.mark.parametrize("name", sorted(set(FILES) - UNREADABLE | {"truncated"}))
    def test_agrees_with_pillow(self, name, tmp_path):
        (tmp_path / "file").write_bytes(FILES[name])
        header = HeaderReader().read(FILES[name])
        with Image.open(tmp_path / "file") as image:
            assert header.size == image.size
            assert header.channels == len(image.getbands())
            assert header.suffix[1:] == {"JPEG": "jpg"}.get(image.format, image.format.lower())

    @pytest.mark.parametrize("quality", [5, 10, 30, 50, 75, 90, 95, 100])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
    def test_quality(self, quality, options):
        header = HeaderReader().read(encoded(picture(0), quality=quality, **options))
        assert abs(header.quality - quality) <= 2

    def test_what_was_read_before_makes_no_difference(self):
        """Files that begin alike, and files that differ in the last byte of their frame header's size or later."""
        files = [FILES[name] for name in sorted(set(FILES) - UNREADABLE | {"truncated"})]
        files += [jpeg(n, size) for n, size in enumerate((112, 112, 113, 112, 40))]
        taller = bytearray(FILES["good"])
        taller[taller.index(b"\xff\xc0") + 6] += 1
        wider = bytearray(FILES["good"])
        wider[wider.index(b"\xff\xc0") + 8] += 1
        greyer = bytearray(FILES["good"])
        greyer[greyer.index(b"\xff\xc0") + 9] = 1
        files += [bytes(taller), bytes(wider), bytes(greyer)]
        reader = HeaderReader()
        for at in np.random.default_rng(0).integers(0, len(files), 1000):
            assert reader.read(files[at]) == HeaderReader().read(files[at])
        assert len({HeaderReader().read(file) for file in files[-3:]}) == 3

    def test_what_is_kept_of_headers_is_limited(self, monkeypatch):
        """Sizes that differ are headers that differ; segments of every length are starts of every length."""
        parsed = []
        parse = header._read_jpeg
        monkeypatch.setattr(header, "_read_jpeg", lambda content: parsed.append(content) or parse(content))
        good, reader = bytearray(FILES["good"]), HeaderReader()
        at = good.index(b"\xff\xc0")
        for side in range(1, 600):
            good[at + 5 : at + 7] = side.to_bytes(2, "big")
            assert reader.read(bytes(good)).size[1] == reader.read(bytes(good)).size[1] == side
            assert len(reader._known) <= header._MOST_HEADERS
        assert len(parsed) == 599, "each once"
        for length in range(2, 40):
            longer = bytes(good[:2]) + b"\xff\xfe" + length.to_bytes(2, "big") + bytes(length - 2) + bytes(good[2:])
            assert reader.read(longer) == HeaderReader().read(bytes(good))
            assert len(reader._lengths) <= header._MOST_LENGTHS

    def test_mutated_headers_are_read_or_refused(self):
        rng = np.random.default_rng(0)
        reader = HeaderReader()
        for name in ("good", "png", "webp", "bmp"):
            for _ in range(150):
                content = bytearray(FILES[name])
                for at in rng.integers(0, 80, 3):
                    content[at] = rng.integers(256)
                try:
                    reader.read(bytes(content[: rng.integers(1, 900)]))
                except ValueError as error:
                    assert str(error)


class TestPictureHashes:
    def test_copies_are_near_and_others_are_not(self):
        def pixels(image):
            return np.asarray(image.convert("RGB").resize((112, 112)))[..., 1]

        originals = [picture(seed) for seed in range(50)]
        copies = [image.resize((80, 80)) for image in originals]
        hashes = picture_hashes(np.stack([pixels(image) for image in originals + copies]))
        pairs = near_pairs(hashes, 6)
        assert (pairs[:, 1] - pairs[:, 0] == 50).all() and len(pairs) >= 48

    @pytest.mark.parametrize("shape", [(28, 28), (9, 36), (112, 50)])
    def test_bits_are_comparisons_of_means(self, shape):
        """As torch pools: spots that share pixels where the size is no multiple of nine."""
        images = np.random.default_rng(0).integers(0, 256, (7, *shape), dtype=np.uint8)
        means = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images).double(), 9).numpy()
        expected = np.zeros((7, 128), bool)
        for bit, (y, x) in enumerate(np.ndindex(8, 8)):
            expected[:, bit] = means[:, y, x + 1] > means[:, y, x] + 1e-9
            expected[:, 64 + bit] = means[:, y + 1, x] > means[:, y, x] + 1e-9
        bits = np.unpackbits(picture_hashes(images).view(np.uint8), axis=1)
        assert np.array_equal(bits, expected)

    def test_groups(self):
        hashes = np.array([5, -1, 5, 7, 8, -1, 5])
        assert [group.tolist() for group in groups_of(hashes)] == [[1, 5], [0, 2, 6]]
        assert groups_of(hashes[:2]) == groups_of(hashes[:0]) == []

    def test_pairs_are_those_of_a_full_search(self):
        rng = np.random.default_rng(0)
        hashes = rng.integers(0, 2**64, (300, 2), dtype=np.uint64)
        for copy, original in enumerate(rng.permutation(150)[:40]):
            flips = rng.integers(0, 64, rng.integers(0, 4))
            hashes[260 + copy] = hashes[original]
            for bit in flips:
                hashes[260 + copy, bit % 2] ^= np.uint64(1) << np.uint64(bit)
        bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
        distances = (bits[:, None] != bits[None]).sum(axis=2)
        assert near_pairs(hashes, 4).tolist() == np.argwhere(np.triu(distances <= 4, 1)).tolist()
        assert near_pairs(hashes[:1], 4).shape == near_pairs(hashes[:0], 4).shape == (0, 2)


def test_real_faces(shared):
    """Training stumbles over none of them."""
    report = check(open_source(shared / "faces" / "recordio" / "validation.rec"), threads=2)
    assert report.sound and report.images == 229
    assert not report.problems["wrong_size"]
