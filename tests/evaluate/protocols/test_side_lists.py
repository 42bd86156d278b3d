import numpy as np
import pytest

from evaluate.protocols.side_lists import read_groups, read_people, read_quality
from pipelines.common.errors import UserError


def test_groups_are_people_and_what_follows_the_last_mark(tmp_path):
    (tmp_path / "g.csv").write_text("\ufeffSmith, John,north\nO Neil,south\n\n", encoding="utf-8")
    assert read_groups(tmp_path / "g.csv") == {"Smith, John": "north", "O Neil": "south"}
    (tmp_path / "g.tsv").write_text("Smith, John\tnorth, far\n")
    assert read_groups(tmp_path / "g.tsv") == {"Smith, John": "north, far"}


@pytest.mark.parametrize(
    "text, told",
    [
        ("a,x\nb\n", "line 2 must hold"),
        ("a,x\na,y\n", "a is in two groups, x and y"),
        (",x\n", "line 1"),
        ("", "g.csv names nobody"),
        ("\ufeff\n \n", "g.csv names nobody"),
    ],
)
def test_what_is_no_list_of_groups_is_told(tmp_path, text, told):
    (tmp_path / "g.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_groups(tmp_path / "g.csv")


def test_a_person_and_a_quality_for_each_image(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb b\n")
    assert read_people(tmp_path / "p.txt", 2) == ["a", "b b"]
    with pytest.raises(UserError, match="3 lines, one an image; it has 2"):
        read_people(tmp_path / "p.txt", 3)
    np.save(tmp_path / "q.npy", np.array([1, 2], np.int32))
    assert read_quality(tmp_path / "q.npy", 2).tolist() == [1, 2]
    for bad in (np.zeros((2, 1)), np.zeros(3), np.array(["a", "b"])):
        np.save(tmp_path / "q.npy", bad)
        with pytest.raises(UserError, match="a number an image"):
            read_quality(tmp_path / "q.npy", 2)
    (tmp_path / "q.npy").write_bytes(b"PK\x03\x04" + bytes(99))  # which numpy takes for an archive
    with pytest.raises(UserError, match="q.npy is no sound .npy file"):
        read_quality(tmp_path / "q.npy", 2)
    np.save(tmp_path / "q.npy", np.array([1, np.nan]))
    with pytest.raises(UserError, match="quality of image 1 is not finite"):
        read_quality(tmp_path / "q.npy", 2)
