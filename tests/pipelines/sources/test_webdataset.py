"""Which members of a tar file are images, and which label each of them has."""

import io
import tarfile

import numpy as np
import pytest

from pipelines.sources import open_source
from tests.pipelines.photos import jpeg, people_in, write_tar


def people(folder, members):
    """{identity: number of images} of a tar file with these members, each image its own."""
    content = {name: text if isinstance(text, bytes) else jpeg(n, 16) for n, (name, text) in enumerate(members.items())}
    write_tar(folder / "a.tar", content)
    found = people_in(open_source(folder / "a.tar"))
    images = [image for images in found.values() for image in images]
    assert len(set(images)) == len(images)
    return {name: len(images) for name, images in found.items()}


def of(*names):
    return dict.fromkeys(names)


def test_what_follows_the_last_dot_is_the_suffix(tmp_path):
    frames = [f"who{p}/aligned_detect_0.{n}.jpg" for p in range(2) for n in range(555, 559)]
    assert people(tmp_path, of(*frames)) == {"who0": 4, "who1": 4}
    assert people(tmp_path, of("a/12.jpg", "a/12.png", "a/12.v2.JPG", "./b.c/12.jpg")) == {"a": 3, "b.c": 1}


def test_a_label_belongs_to_the_image_of_its_name(tmp_path):
    members = of("s/12.v2.jpg", "s/12.jpg", "s/13.v2.jpg")
    labels = {"s/12.v2.cls": b"5", "s/12.cls": b"3", "s/13.v2.cls": b"1\n"}
    assert people(tmp_path, labels | members) == {"5": 1, "3": 1, "1": 1}


def test_a_label_belongs_to_all_images_of_its_sample(tmp_path):
    members = of("0001.input.jpg", "0001.target.jpg", "0002.input.jpg", "0002.target.jpg")
    assert people(tmp_path, members | {"0001.cls": b"1", "0002.cls": b"0"}) == {"1": 2, "0": 2}


def test_of_members_of_one_name_the_last_counts(tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("x/1.jpg", jpeg(0)), ("x/2.jpg", jpeg(1)), ("./x/1.jpg", jpeg(2))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for _ in range(2):  # scanned, and from the cache
        assert people_in(open_source(tmp_path / "a.tar")) == {"x": [jpeg(2), jpeg(1)]}
        assert "a.tar: 1 images are replaced by later ones of the same name" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    "members, reason",
    [
        ({"s/1.jpg": None, "s/1.cls": b"0", "s/2.jpg": None}, "image 's/2' has no .cls with its label, though others"),
        ({"s/1.jpg": None, "s/1.cls": b" \n"}, "image 's/1': the label is missing"),
        ({"s/1.jpg": None, "s/1.cls": b"None"}, "image 's/1': the label is missing"),
        ({"s/1.jpg": None, "s/1.cls": b"-1"}, "image 's/1': label -1 is no class number"),
        ({"1.jpg": None, "1.cls": b"text " * 99}, "1.cls is no label: it has 495 bytes"),
        ({"1.jpg": None}, r"image '1' has neither a \.cls"),
    ],
)
def test_images_without_a_label(tmp_path, members, reason):
    with pytest.raises(ValueError, match=rf"a\.tar: {reason}"):
        people(tmp_path, members)


def test_shards_with_and_without_labels_do_not_mix(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(0), "1.cls": b"0"})
    write_tar(tmp_path / "b.tar", {"x/1.jpg": jpeg(1)})
    with pytest.raises(ValueError, match=r"a\.tar has labels \(\.cls\), .*b\.tar has none"):
        open_source(tmp_path)


def test_what_is_left_out_is_told(tmp_path, caplog):
    rest = dict.fromkeys(("x/1.gif", "x/2.GIF", "x/frame.0001", "y/3", "x/1.json", "x/1.txt", "x/.2.jpg"), b"?")
    assert people(tmp_path, of("x/1.jpg", "y/1.jpg") | rest) == {"x": 1, "y": 1}
    assert "a.tar: 4 files (.gif 2, no suffix 2) are left out" in caplog.text


def test_companions_that_macos_leaves_are_no_shards(tmp_path):
    companion = b"\0\5\26\7\0\2\0\0Mac OS X        " + bytes(4072)
    for name in ("._a.tar", "._train.rec"):
        (tmp_path / name).write_bytes(companion)
    write_tar(tmp_path / "a.tar", {"x/._1.jpg": companion, "x/1.jpg": jpeg(0)})
    for data in (tmp_path, tmp_path / "*.tar"):
        assert people_in(open_source(data)) == {"x": [jpeg(0)]}
    (tmp_path / "faces" / "x").mkdir(parents=True)
    (tmp_path / "faces" / "x" / "1.jpg").write_bytes(jpeg(1))
    for name in ("._a.tar", "._b.parquet", "._train.rec"):
        (tmp_path / "faces" / name).write_bytes(companion)
    assert people_in(open_source(tmp_path / "faces")) == {"x": [jpeg(1)]}


def test_names_that_are_not_utf_8(tmp_path):
    assert people(tmp_path, of("Jos\udce9/1.jpg", "x/1.jpg")) == {"Jos\udce9": 1, "x": 1}
    assert people_in(open_source(tmp_path / "a.tar")).keys() == {"Jos\udce9", "x"}  # from the cache


def test_labels_of_the_field_s_writer(tmp_path):
    """A sample as ``webdataset.ShardWriter`` writes it: metadata beside images, the class as text."""
    members = {"./000.cls": b"2", "./000.jpg": None, "./000.json": b"{}", "./001.cls": b"0", "./001.jpg": None}
    write_tar(tmp_path / "a.tar", {name: text or jpeg(n) for n, (name, text) in enumerate(members.items())})
    assert open_source(tmp_path).labels(np.arange(2)).tolist() == [2, 0]


@pytest.mark.parametrize("behind", ["s/0.jpg", "s/0.cls", "s/3.jpg", "s/5.cls"])
def test_a_shard_cut_between_its_members_is_refused(tmp_path, behind):
    path = tmp_path / "a.tar"
    write_tar(
        path, {f"s/{n}{end}": jpeg(n, 16) if end == ".jpg" else b"0" for n in range(6) for end in (".jpg", ".cls")}
    )
    whole = path.read_bytes()
    open_source(path)
    with tarfile.open(path) as archive:
        member = archive.getmember(behind)
    end = member.offset_data + member.size + -member.size % 512
    for content in (whole[:end], whole[: end + 100]):
        path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"a\.tar is cut short, the mark of its end is missing: copy or write"):
                open_source(path)
    path.write_bytes(whole[: end + 512] if behind == "s/5.cls" else whole)
    assert len(open_source(path)) == 6


def test_a_damaged_head_of_a_member_is_not_the_end(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {f"s/{n}.jpg": jpeg(n, 16) for n in range(4)})
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        at = archive.getmember("s/2.jpg").offset
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.tar is damaged at byte {at}: copy or write the shard again"):
        open_source(path)
