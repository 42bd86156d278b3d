"""Images by the names of lists."""

from pathlib import Path

import pytest

from pipelines.common.errors import UserError
from pipelines.common.image_files import ListedImages, images_below


def test_what_a_list_means():
    files = [Path(name) for name in ("a/m.01_0001.jpg", "a/x.jpg", "a/x.png", "b/y.png")]
    listed = ListedImages(files)
    assert listed.find("m.01_0001") == files[0] and listed.find("m") is None
    assert listed.find("x", ".png") == files[2]
    assert listed.find("y", ".jpg") == files[3]
    for suffix in ("", ".bmp"):
        with pytest.raises(UserError, match=rf"a/x\.jpg and a/x\.png may both be meant by 'x{suffix}' of a list"):
            listed.find("x", suffix)


def test_one_name_in_two_folders_is_told():
    with pytest.raises(UserError, match=r"a/x\.jpg and b/x\.jpg may both be meant by 'x\.jpg'"):
        ListedImages([Path("a/x.jpg"), Path("b/x.jpg"), Path("b/x.png")]).find("x", ".jpg")


def test_images_below_a_folder(tmp_path):
    for name in ("b/2.PNG", "b/.hidden/3.jpg", "1.jpg", "._1.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert images_below(tmp_path) == [tmp_path / "1.jpg", tmp_path / "b/2.PNG"]
