import numpy as np
import pytest

from benchmarks.synthetic_ijb import write_release
from evaluate.release import Release, integers


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
    for root in (folder, folder / "IJBC"):  # the release, or the folder that holds it
        release = Release(root, "IJBC")
        images = release.images()
        lines = [line.split() for line in meta(folder, "name_5pts_score.txt").read_text().splitlines()]
        assert images.names == [line[0] for line in lines]
        np.testing.assert_allclose(images.landmarks.reshape(-1, 10), [[float(x) for x in line[1:11]] for line in lines])
        np.testing.assert_allclose(images.detector, [float(line[11]) for line in lines])
        first, second, same = release.pairs()
        pairs = np.loadtxt(meta(folder, "template_pair_label.txt"), dtype=int)
        np.testing.assert_array_equal(np.stack([first, second, same], 1), pairs)
        assert set(release.galleries()) == {"g1", "g2"}


def test_a_media_list_in_another_order_is_matched_by_name(folder):
    before = Release(folder, "IJBC").images()
    path = meta(folder, "face_tid_mid.txt")
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    after = Release(folder, "IJBC").images()
    np.testing.assert_array_equal(before.template, after.template)
    np.testing.assert_array_equal(before.media, after.media)


def test_templates_listed_several_times_count_once(folder):
    before = Release(folder, "IJBC").probes()
    path = meta(folder, "1N_probe_mixed.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines[1:5]]))
    np.testing.assert_array_equal(Release(folder, "IJBC").probes().template, before.template)


def test_ijbb_names(folder):
    for path in list((folder / "IJBC/meta").iterdir()):
        path.rename(path.with_name(path.name.replace("ijbc", "ijbb").replace("_G", "_S")))
    release = Release(folder / "IJBC", "IJBB")
    assert len(release.images().names) and len(release.galleries()["g2"].template)


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("name_5pts_score.txt", lambda text: text.replace(" ", "  x ", 1), "a name and 11 numbers"),
        ("name_5pts_score.txt", lambda text: text.replace("38.295", "abc", 1), "could not convert string"),
        ("name_5pts_score.txt", lambda text: "", "lists no image"),
        ("face_tid_mid.txt", lambda text: text.split("\n", 1)[1], "must name the same"),
        ("template_pair_label.txt", lambda text: text + "5", "three integers"),
        ("template_pair_label.txt", lambda text: text + "5 6 2", "label must be 0 or 1"),
        ("1N_gallery_G1.csv", lambda text: text.replace("SUBJECT_ID", "PERSON"), "TEMPLATE_ID and SUBJECT_ID"),
        ("1N_gallery_G1.csv", lambda text: text.split("\n", 1)[0], "lists no template"),
        ("1N_gallery_G1.csv", lambda text: text + "x,1,a,0\n", "must be integers"),
        ("1N_gallery_G1.csv", lambda text: text + "1,1,a,0\n1,2,a,0\n", "two subjects"),
    ],
)
def test_damaged_lists_are_named(folder, name, damage, message):
    path = meta(folder, name)
    path.write_text(damage(path.read_text()))
    release = Release(folder, "IJBC")
    with pytest.raises(ValueError, match=message) as error:
        release.images(), release.pairs(), release.galleries()
    assert name in str(error.value)


def test_missing_lists_are_named(folder):
    meta(folder, "1N_gallery_G2.csv").unlink()
    with pytest.raises(FileNotFoundError, match="gallery_G2"):
        Release(folder, "IJBC").galleries()
    with pytest.raises(FileNotFoundError, match="is this the IJBB release"):
        Release(folder, "IJBB")
