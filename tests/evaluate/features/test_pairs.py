"""Pairs of a list and a folder of images: RFW's ``X_pairs.txt``."""

import pytest

from evaluate.features.pairs import read_pairs
from tests.pipelines.photos import jpeg

PEOPLE = ("m.01", "m.02", "m.03")


def write(folder, images):
    """Two images of each person, and ten pairs of them as lines of RFW's list."""
    for place, person in enumerate(PEOPLE):
        (images / person).mkdir(parents=True)
        for number in (1, 2):
            suffix = "png" if person == "m.02" else "jpg"
            (images / person / f"{person}_{number:04d}.{suffix}").write_bytes(jpeg(2 * place + number))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "African_pairs.txt"
    genuine = [f"{person}\t1\t2" for person in PEOPLE] * 2
    impostor = ["m.01\t1\tm.02\t1", "m.01\t2\tm.03\t2", "m.03\t1\tm.02\t2", "m.02\t1\tm.03\t1"]
    path.write_text("\n".join([*genuine, *impostor]) + "\n")
    return path


@pytest.mark.parametrize("lists, images", [("txts/African", "data/African"), (".", "African"), (".", ".")])
def test_images_lie_as_in_the_release_or_beside_the_list(tmp_path, lists, images):
    pairs = read_pairs(write(tmp_path / lists, tmp_path / images))
    assert pairs.same.tolist() == [True] * 6 + [False] * 4
    assert pairs.encoded[:2] == [jpeg(1), jpeg(2)]
    assert pairs.encoded[-4:] == [jpeg(5), jpeg(4), jpeg(3), jpeg(5)]


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path, tmp_path / "African")
    (tmp_path / "African/m.03/m.03_0002.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 2 of 'm.03': there is no .*m.03_0002.jpg"):
        read_pairs(path)
    (tmp_path / "African").rename(tmp_path / "other")
    with pytest.raises(ValueError, match="of whom there is no folder in .*African"):
        read_pairs(path)
    path.write_text("m.01\t1\t2\n")
    (tmp_path / "other").rename(tmp_path / "African")
    with pytest.raises(ValueError, match="1 pairs, too few"):
        read_pairs(path)
