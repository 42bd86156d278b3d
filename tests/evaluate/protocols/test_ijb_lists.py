import os

import numpy as np
import pytest

from benchmarks.synthetic_ijb import write_release
from evaluate.protocols.ijb_lists import IJB, integers


@pytest.fixture
def folder(tmp_path):
    write_release(tmp_path, 0.002, dimension=8)
    return tmp_path


def meta(folder, name):
    return folder / "IJBC/meta" / f"ijbc_{name}"


@pytest.mark.parametrize("chunk", [1, 5, 17, 1 << 20])
@pytest.mark.parametrize("text", ["1 22 333\n", "7", "\n\n 12\t0 \r\n345 6", "000012 999999999\n1"])
def test_integers(tmp_path, text, chunk):
    path = tmp_path / "numbers.txt"
    path.write_text(text)
    np.testing.assert_array_equal(integers(path, chunk), np.array(text.split(), int))


@pytest.mark.parametrize("text", ["1 -2 3", "1 2.5 1", "1 2 x", "1234567890"])
def test_integers_refuses_anything_else(tmp_path, text):
    (tmp_path / "numbers.txt").write_text(text)
    with pytest.raises(ValueError, match="whole numbers"):
        integers(tmp_path / "numbers.txt")


def test_lists_are_read_as_written(folder):
    for root in (folder, folder / "IJBC"):  # the data set, or the folder that holds it
        data = IJB(root, "IJBC")
        images = data.images()
        lines = [line.split() for line in meta(folder, "name_5pts_score.txt").read_text().splitlines()]
        assert images.names == [line[0] for line in lines]
        np.testing.assert_allclose(images.landmarks.reshape(-1, 10), [[float(x) for x in line[1:11]] for line in lines])
        np.testing.assert_allclose(images.detector, [float(line[11]) for line in lines])
        first, second, same = data.pairs()
        pairs = np.loadtxt(meta(folder, "template_pair_label.txt"), dtype=int)
        np.testing.assert_array_equal(np.stack([first, second, same], 1), pairs)
        assert set(data.galleries()) == {"g1", "g2"}


def test_a_media_list_in_another_order_is_matched_by_name(folder):
    before = IJB(folder, "IJBC").images()
    path = meta(folder, "face_tid_mid.txt")
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    after = IJB(folder, "IJBC").images()
    np.testing.assert_array_equal(before.template, after.template)
    np.testing.assert_array_equal(before.media, after.media)


def test_templates_listed_several_times_count_once(folder):
    before = IJB(folder, "IJBC").probes()
    path = meta(folder, "1N_probe_mixed.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines[1:5]]))
    np.testing.assert_array_equal(IJB(folder, "IJBC").probes().template, before.template)


def test_ijbb_names(folder):
    for path in list((folder / "IJBC/meta").iterdir()):
        path.rename(path.with_name(path.name.replace("ijbc", "ijbb").replace("_G", "_S")))
    data = IJB(folder / "IJBC", "IJBB")
    assert len(data.images().names) and len(data.galleries()["g2"].template)


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("name_5pts_score.txt", lambda text: text.replace(" ", "  x ", 1), "a name and 11 numbers"),
        ("name_5pts_score.txt", lambda text: text.replace("38.295", "abc", 1), "could not convert string"),
        ("name_5pts_score.txt", lambda text: "", "lists no image"),
        ("face_tid_mid.txt", lambda text: text.split("\n", 1)[1], "must name the same"),
        ("template_pair_label.txt", lambda text: text + "5", "three integers"),
        ("template_pair_label.txt", lambda text: text + "5 6 2", "label must be 0 or 1"),
        ("template_pair_label.txt", lambda text: text + "5 6 -1", "not '-1'"),
        ("template_pair_label.txt", lambda text: text + "5,6,1", "not '5,6,1'"),
        ("template_pair_label.txt", lambda text: text + "5.0 6 1", "not '5.0'"),
        ("template_pair_label.txt", lambda text: text + "1234567890 6 1", "at most nine digits.* not '1234567890'"),
        ("face_tid_mid.txt", lambda text: text.replace(" ", " 1.7 ", 1), r"whole numbers, 1\.jpg has 1\.7 and"),
        ("face_tid_mid.txt", lambda text: text.replace(" ", " inf ", 1), r"whole numbers, 1\.jpg has inf and"),
        ("face_tid_mid.txt", lambda text: text.replace(" ", " 1e30 ", 1), r"whole numbers, 1\.jpg has 1e\+30 and"),
        ("1N_gallery_G1.csv", lambda text: "x" * 200_000, "no table of comma-separated values: field larger"),
        ("1N_gallery_G1.csv", lambda text: text.replace("SUBJECT_ID", "PERSON"), "TEMPLATE_ID and SUBJECT_ID"),
        ("1N_gallery_G1.csv", lambda text: text.split("\n", 1)[0], "lists no template"),
        ("1N_gallery_G1.csv", lambda text: text.replace(",", ";"), "its first line is 'TEMPLATE_ID;SUBJECT_ID"),
        ("1N_gallery_G1.csv", lambda text: text + "x,1,a,0\n", "must be integers, not 'x, 1'"),
        ("1N_gallery_G1.csv", lambda text: text + "2.5,1,a,0\n", "must be integers, not '2.5, 1'"),
        ("1N_gallery_G1.csv", lambda text: text + "1,1,a,0\n1,2,a,0\n", "two subjects"),
        ("template_pair_label.txt", lambda text: text.replace(" 1\n", " 0\n"), r"all \d+ pairs is 0; both 0 and 1"),
    ],
)
def test_damaged_lists_are_named(folder, name, damage, message):
    path = meta(folder, name)
    path.write_text(damage(path.read_text()))
    data = IJB(folder, "IJBC")
    with pytest.raises(ValueError, match=message) as error:
        data.images(), data.pairs(), data.galleries()
    assert name in str(error.value)


def everything(data):
    images, people = data.images(), [*data.galleries().values(), data.probes()]
    arrays = [images.landmarks, images.detector, images.template, images.media, *data.pairs()]
    return images.names, arrays + [array for part in people for array in (part.template, part.subject)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,  # as Windows' programs begin a file
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text + b"\n  \n \t \n",
    ],
)
def test_how_other_programs_write_lists(folder, change):
    names, arrays = everything(IJB(folder, "IJBC"))
    for path in (folder / "IJBC/meta").iterdir():
        path.write_bytes(change(path.read_bytes()))
    names_now, arrays_now = everything(IJB(folder, "IJBC"))
    assert names_now == names
    for before, now in zip(arrays, arrays_now):
        np.testing.assert_array_equal(before, now)


def test_whole_ids_may_be_written_with_a_point(folder):
    before = IJB(folder, "IJBC").images()
    path = meta(folder, "face_tid_mid.txt")
    lines = (line.split() for line in path.read_text().splitlines())
    path.write_text("\n".join(f"{name} {template}.0 {media}.0" for name, template, media in lines))
    after = IJB(folder, "IJBC").images()
    assert (after.template == before.template).all() and (after.media == before.media).all()
    assert after.template.dtype == np.int64


def test_names_in_any_encoding(folder):
    """The same bytes are a name in a list and in a folder."""
    for name in ("name_5pts_score.txt", "face_tid_mid.txt"):
        path = meta(folder, name)
        path.write_bytes(b"caf\xe9/" + path.read_bytes())
    data = IJB(folder, "IJBC")
    name = data.images().names[0]
    assert os.fsencode(data.image_path(name)).endswith(b"loose_crop/caf\xe9/1.jpg")


@pytest.mark.parametrize(
    "name",  # in UTF-8 with the bytes a0 and 85, which are blanks of Latin-1; with blanks of Unicode; no UTF-8
    ["à.jpg".encode(), "Å.jpg".encode(), "no\u00a0break\u3000or\u2028line.jpg".encode(), b"a\xa0b\x85c.jpg"],
)
def test_no_byte_of_a_name_is_a_blank(folder, name):
    before = IJB(folder, "IJBC").images()
    for path in (meta(folder, "name_5pts_score.txt"), meta(folder, "face_tid_mid.txt")):
        path.write_bytes(name + b" " + path.read_bytes().split(b" ", 1)[1])
    after = IJB(folder, "IJBC").images()
    assert after.names == [os.fsdecode(name), *before.names[1:]]
    for field in ("landmarks", "detector", "template", "media"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))


def test_missing_lists_are_named(folder):
    meta(folder, "1N_gallery_G2.csv").unlink()
    with pytest.raises(FileNotFoundError, match="gallery_G2"):
        IJB(folder, "IJBC").galleries()
    with pytest.raises(FileNotFoundError, match="where are the lists of IJBB"):
        IJB(folder, "IJBB")
