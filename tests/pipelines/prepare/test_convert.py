"""Conversion between all formats, and what is left out."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.loading.loader import Loader
from pipelines.prepare import __main__ as prepare
from pipelines.prepare import convert as convert_module
from pipelines.prepare.convert import convert
from pipelines.prepare.encode import Reencode
from pipelines.sources import open_source
from pipelines.sources.memory import MemorySource
from pipelines.sources.recordio import IRHeader, RecordReader, pack
from pipelines.sources.recordio_index import scan
from pipelines.sources.recordio_writer import RecordWriter
from tests.command import called
from tests.pipelines.photos import encoded, jpeg, people_in, picture, write_folder, write_tar

COUNTS = {"anna": 3, "Bob Ross": 1, "çelik": 2, "ώμέγα": 4}


@pytest.fixture
def people(tmp_path):
    return write_folder(tmp_path / "faces", COUNTS)


def folder(tmp_path, people):
    return tmp_path / "faces"


def list_file(tmp_path, people):
    lines = [f"faces/{name}/{name}_{n:04d}.jpg {name.replace(' ', '_')}" for name in people for n in range(1, 5)]
    lines = [line for line in lines if (tmp_path / line.rpartition(" ")[0]).exists()]
    (tmp_path / "faces.txt").write_text("\n".join(["", *lines[::-1]]))
    return tmp_path / "faces.txt"


def records(tmp_path, people):
    convert(open_source(tmp_path / "faces"), tmp_path / "records")
    return tmp_path / "records"


def shards_of_folders(tmp_path, people):
    images = [(f"./{name}/{n}.jpg", image) for name, images in people.items() for n, image in enumerate(images)]
    write_tar(tmp_path / "a-0.tar", {**dict(images[:4]), "./anna/notes.txt": b"no image"})
    write_tar(tmp_path / "a-1.tar", dict(images[4:]))
    return tmp_path / "a-*.tar"


def shards(tmp_path, people):
    convert(open_source(tmp_path / "faces"), tmp_path / "shards", form="webdataset", shard_size=3)
    return tmp_path / "shards"


def shuffled_records(tmp_path, people):
    convert(open_source(tmp_path / "faces"), tmp_path / "shuffled", shuffle=3)
    return tmp_path / "shuffled"


def lmdb_of_images(tmp_path, people):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"__len__", b"10")
        for name, images in people.items():
            for n, image in enumerate(images):
                transaction.put(f"{name}/{n}".encode(), image)
    return tmp_path / "lmdb"


def lmdb_of_records(tmp_path, people):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"000000000", pack(IRHeader(2, [11, 15], 0), b""))
        key = 1
        for label, images in enumerate(people.values()):
            for image in images:
                transaction.put(b"%09d" % key, pack(IRHeader(0, label, key), image))
                key += 1
    (tmp_path / "lmdb" / "identities.json").write_text(json.dumps(list(people)))
    return tmp_path / "lmdb"


def parquet(tmp_path, people):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {"label": {"names": list(people), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    rows = [(image, label) for label, images in enumerate(people.values()) for image in images]
    for part, chosen in enumerate((rows[:7], rows[7:])):
        images = pyarrow.array([{"bytes": image, "path": None} for image, _ in chosen])
        table = pyarrow.table({"image": images, "label": pyarrow.array([label for _, label in chosen])})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / f"faces-{part}.parquet", row_group_size=3)
    return tmp_path / "faces-*.parquet"


INPUTS = [folder, list_file, records, shards, shards_of_folders, shuffled_records]
EXTRAS = [lmdb_of_images, lmdb_of_records, parquet]


@pytest.mark.parametrize("form", ["recordio", "webdataset"])
@pytest.mark.parametrize("make", INPUTS + EXTRAS)
def test_round_trip(tmp_path, people, make, form):
    source = open_source(make(tmp_path, people))
    assert (len(source), source.num_classes) == (10, 4)
    assert convert(source, tmp_path / "out", form=form).images == 10
    back = open_source(tmp_path / "out")
    spaced = {name.replace("_", " "): sorted(images) for name, images in people_in(back).items()}
    assert spaced == {name: sorted(images) for name, images in people.items()}
    names = json.loads((tmp_path / "out" / "identities.json").read_text())
    assert sorted(name.replace("_", " ") for name in names) == sorted(people)
    indices = np.arange(10)
    assert np.array_equal(back.labels(indices), back.read(indices)[1])
    assert all("label" in source.describe(index) for index in indices)
    if form == "recordio":
        assert np.array_equal(np.sort(back.labels(indices)), back.labels(indices))
        assert (tmp_path / "out" / "property").read_text() == "4,112,112"
    assert not list(tmp_path.glob(".*"))


def test_a_shuffle_takes_every_key_of_its_generator_and_no_other(tmp_path, people):
    arguments = "convert", tmp_path / "faces", tmp_path / "out", "--shuffle"
    assert "is more than" in called(prepare.main, *arguments, 2**128).error
    assert called(prepare.main, *arguments, 2**128 - 1).code == 0


@pytest.mark.parametrize("make", [shards, parquet])
def test_training_reads_shards_as_it_reads_folders(tmp_path, people, make):
    """The same schedule and the same decoding: equal batches, whatever holds the images."""

    def batches(source):
        loader = Loader(source, batch_size=4, seed=3, threads=1)
        taken = [next(loader) for _ in range(5)]
        loader.close()
        return taken

    for ours, theirs in zip(batches(open_source(make(tmp_path, people))), batches(open_source(tmp_path / "faces"))):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.indices, theirs.indices)


def test_labels_with_gaps_become_dense_and_are_remembered(tmp_path):
    source = MemorySource([jpeg(0), jpeg(1), jpeg(2), jpeg(3)], np.array([7, 2, -1, 2]))
    written = convert(source, tmp_path / "out")
    assert (written.identities, written.images, written.left_out) == (2, 3, 1)
    back = open_source(tmp_path / "out")
    assert people_in(back) == {"2": [jpeg(1), jpeg(3)], "7": [jpeg(0)]}
    assert back.labels(np.arange(3)).tolist() == [0, 0, 1]
    assert "no label" in (tmp_path / "out" / "left_out.jsonl").read_text()


def test_a_shuffle_is_a_permutation_that_its_key_decides(tmp_path):
    source = MemorySource([jpeg(n, 8) for n in range(60)], np.arange(60) // 6)

    def order(name, **options):
        convert(source, tmp_path / name, **options)
        images, _ = open_source(tmp_path / name).read(np.arange(60))
        return [source._encoded.index(image.tobytes()) for image in images]

    first = order("a", shuffle=1)
    assert sorted(first) == list(range(60)) != first
    assert first == order("b", shuffle=1) == order("c", shuffle=1, form="webdataset", threads=3)
    assert first != order("d", shuffle=2)
    assert order("e") == list(range(60))


def test_sets_too_large_for_insightface_layout_are_written_without_it(tmp_path, people, monkeypatch):
    monkeypatch.setattr(convert_module, "LABEL_LIMIT", 14)
    convert(open_source(tmp_path / "faces"), tmp_path / "plain")
    reader = RecordReader(tmp_path / "plain" / "train.rec", scan(tmp_path / "plain" / "train.rec")[0])
    assert len(reader) == 10 and len(reader.unpack(0)[1])
    assert people_in(open_source(tmp_path / "plain")) == people
    monkeypatch.setattr(convert_module, "LABEL_LIMIT", 15)
    convert(open_source(tmp_path / "faces"), tmp_path / "with")
    assert len(scan(tmp_path / "with" / "train.rec")[0]) == 1 + 10 + 4


def test_only_images_of_another_size_are_encoded_anew(tmp_path):
    small, right = jpeg(0, 60), jpeg(1, 32)
    png = encoded(picture(2, 32), "PNG")
    rotated = Image.Exif()
    rotated[274] = 6  # the camera was turned
    two_colours = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 8, 1).repeat(8, 0))
    turned = encoded(two_colours.resize((16, 16)), exif=rotated)
    source = MemorySource([small, right, png, turned], np.zeros(4, np.int64))
    convert(source, tmp_path / "sized", transform=Reencode(size=32))
    images = people_in(open_source(tmp_path / "sized"))["0"]
    assert images[1:3] == [right, png] and images[0] != small
    with Image.open(_file(images[0])) as image:
        assert (image.size, image.format) == ((32, 32), "JPEG")
        difference = np.asarray(image, int) - np.asarray(picture(0, 60).resize((32, 32)), int)
    assert np.abs(difference).mean() < 8  # JPEG at half the colour resolution
    with Image.open(_file(images[3])) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    assert (pixels[:, 28, 0] > 200).all() and (pixels[:, 4, 2] > 200).all()  # red is now on the right
    convert(source, tmp_path / "all", transform=Reencode(quality=50))
    assert all(image[:2] == b"\xff\xd8" for image in people_in(open_source(tmp_path / "all"))["0"])


@pytest.mark.parametrize("side", [32, 40, 63, 64, 100, 300])
def test_resized_photographs_look_as_pillow_makes_them(side):
    """Whether they are decoded at their own size or at a part of it; those of the right size stay as they are."""
    photograph = encoded(picture(1, side), quality=98)
    resized = Reencode(size=32)(0, photograph)
    assert (resized == photograph) == (side == 32)
    expected = Image.open(_file(photograph)).resize((32, 32), Image.Resampling.LANCZOS)
    with Image.open(_file(resized)) as image:
        assert image.size == (32, 32)
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 8
    with pytest.raises(OSError):
        Reencode(size=32)(0, photograph[:-200])


def _file(content):
    return io.BytesIO(content)


def test_a_bad_file_that_is_listed_twice_is_two_images(tmp_path, people):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    lines = ["faces/anna/anna_0001.jpg 0", "bad.jpg 0", "bad.jpg 0", "faces/Bob Ross/Bob Ross_0001.jpg 1"]
    (tmp_path / "a.lst").write_text("\n".join(lines))
    written = convert(open_source(tmp_path / "a.lst"), tmp_path / "out")
    assert (written.images, written.left_out) == (2, 2)
    listed = map(json.loads, (tmp_path / "out" / "left_out.jsonl").read_text().splitlines())
    assert [line["index"] for line in listed] == [1, 2]


class TestInputs:
    def test_im2rec_lists(self, tmp_path, people):
        (tmp_path / "faces.lst").write_text(
            "0\t2.000000\tfaces/anna/anna_0001.jpg\n1\t0.000000\tfaces/Bob Ross/Bob Ross_0001.jpg\n"
        )
        assert people_in(open_source(tmp_path / "faces.lst")) == {"2": people["anna"][:1], "0": people["Bob Ross"]}

    def test_lists_that_are_none(self, tmp_path):
        for text, reason in (("a.jpg\n", "line 1 is not 'path label'"), ("\n", "names no images")):
            (tmp_path / "a.txt").write_text(text)
            with pytest.raises(ValueError, match=reason):
                open_source(tmp_path / "a.txt")

    def test_shards_index_is_built_once_and_anew_for_another_file(self, tmp_path, monkeypatch):
        from pipelines.sources import webdataset as shards

        scanned = []
        original = shards._scan
        monkeypatch.setattr(shards, "_scan", lambda path: scanned.append(path) or original(path))
        write_tar(tmp_path / "a.tar", {"x/1.jpg": jpeg(0)})
        assert [people_in(open_source(tmp_path / "a.tar")) for _ in range(2)] == [{"x": [jpeg(0)]}] * 2
        assert len(scanned) == 1
        write_tar(tmp_path / "a.tar", {"y/1.jpg": jpeg(1), "y/2.JPG": jpeg(2), "1.cls": b"no image"})
        assert people_in(open_source(tmp_path)) == {"y": [jpeg(1), jpeg(2)]}
        (tmp_path / "a.tar.index.npz").write_bytes(b"damaged")
        assert people_in(open_source(tmp_path)) == {"y": [jpeg(1), jpeg(2)]}

    def test_shards_that_are_none(self, tmp_path):
        write_tar(tmp_path / "a.tar", {"x/1.jpg": jpeg(0), "x/2.jpg": jpeg(1)})
        whole = (tmp_path / "a.tar").read_bytes()
        for content, reason in (
            (b"not a tar file at all", "no sound, uncompressed tar"),
            (whole[:1500], "ends within x/1.jpg|no sound"),
        ):
            (tmp_path / "a.tar").write_bytes(content)
            with pytest.raises(ValueError, match=reason):
                open_source(tmp_path / "a.tar")
        write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(0)})
        with pytest.raises(ValueError, match=r"image '1' has neither a \.cls"):
            open_source(tmp_path / "a.tar")
        write_tar(tmp_path / "a.tar", {"1.cls": b"0"})
        with pytest.raises(ValueError, match="hold no images"):
            open_source(tmp_path / "a.tar")

    def test_a_missing_package_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "a.parquet").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match=r"pip install 'facemill\[convert\]'"):
            open_source(tmp_path / "a.parquet")

    def test_damaged_extras(self, tmp_path):
        pytest.importorskip("pyarrow")
        for name in ("a.parquet", "b.mdb"):
            (tmp_path / name).write_bytes(b"PAR1 nothing of the kind PAR1" * 200)
            with pytest.raises(ValueError, match="no sound Parquet|readable"):
                open_source(tmp_path / name)


def test_identities_json_that_is_none(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, pack(IRHeader(0, 0, 0), jpeg(0)))
    for text in ("[1, 2]", "{}", "["):
        (tmp_path / "identities.json").write_text(text)
        with pytest.raises(ValueError, match=r"identities\.json"):
            open_source(tmp_path)


def test_an_identity_of_unreadable_images_gets_no_class_where_classes_are_counted_last(tmp_path):
    source = MemorySource([jpeg(0), b"none", jpeg(1)], np.array([0, 1, 2]))
    for form, shuffle, names in (
        ("recordio", None, ["0", "2"]),
        ("recordio", 1, ["0", "1", "2"]),
        ("webdataset", None, ["0", "1", "2"]),
    ):
        out = tmp_path / f"{form} {shuffle}"
        written = convert(source, out, form=form, shuffle=shuffle)
        assert (written.identities, written.images, written.left_out) == (len(names), 2, 1)
        assert json.loads((out / "identities.json").read_text()) == names
        assert {name: len(images) for name, images in people_in(open_source(out)).items() if images} == {"0": 1, "2": 1}
