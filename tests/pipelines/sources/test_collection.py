"""Several sets to train on, against dictionaries of who is where."""

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.sources import open_source, open_sources
from pipelines.sources.changes import NOBODY, Changes
from pipelines.sources.collection import DataSet, open_collection
from tests.pipelines.photos import people_in, write_folder


@pytest.fixture
def two(tmp_path):
    """Anna is in both."""
    first = write_folder(tmp_path / "a", {"anna": 3, "ben": 2})
    second = write_folder(tmp_path / "b", {"anna": 2, "carl": 3, "dora": 1})
    return first, second


def opened(folder, *sets, changes=()):
    entries = [DataSet(**{**options, "path": str(folder / options["path"])}) for options in sets]
    return open_collection(entries, changes)


def written(path, *lines):
    path.write_text("".join(f"{line}\n" for line in ("# a remark", "", *lines)))
    return str(path)


def test_sets_as_they_are(tmp_path, two):
    (source, sizes), theirs = opened(tmp_path, {"path": "a"}, {"path": "b"}), [tmp_path / "a", tmp_path / "b"]
    assert sizes == [5, 6] and source.fingerprint() == open_sources(theirs).fingerprint()
    assert people_in(source) == {
        **{f"a/{name}": images for name, images in two[0].items()},
        **{f"b/{name}": images for name, images in two[1].items()},
    }
    single, _ = opened(tmp_path, {"path": "a"})
    assert single.fingerprint() == open_source(tmp_path / "a").fingerprint() and single.identity(0) == "anna"


def test_who_is_called_the_same_is_one_where_labels_are_shared(tmp_path, two):
    source, sizes = opened(tmp_path, {"path": "a", "labels": "shared"}, {"path": "b", "labels": "shared"})
    first, second = two
    assert people_in(source) == {
        "a/anna": first["anna"] + second["anna"],
        "a/ben": first["ben"],
        "b/carl": second["carl"],
        "b/dora": second["dora"],
    }
    assert source.num_classes == 4 and sizes == [5, 6]
    assert (
        source.labels(np.arange(11)).tolist()
        == [0, 0, 0, 1, 1, 0, 0, 2, 2, 2, 3]
        == source.read(np.arange(11))[1].tolist()
    )
    apart, _ = opened(tmp_path, {"path": "a", "labels": "shared"}, {"path": "b"})
    assert apart.num_classes == 5


def test_a_file_says_who_is_who(tmp_path, two):
    """Carl is the first set's Ben; Anna is another Anna, and stays apart; Dora is somebody that no set before has."""
    who = written(tmp_path / "who.txt", "carl\tben", "dora\teve")
    source, _ = opened(tmp_path, {"path": "a", "labels": "shared"}, {"path": "b", "labels": who})
    first, second = two
    assert people_in(source) == {
        "a/anna": first["anna"],
        "a/ben": first["ben"] + second["carl"],
        "b/anna": second["anna"],
        "b/dora": second["dora"],
    }


def test_lists_of_images_and_of_identities(tmp_path, two):
    names = written(tmp_path / "names.txt", "dora", "carl")
    images = written(tmp_path / "images.txt", 4, 0, "0", 2)
    source, sizes = opened(tmp_path, {"path": "a", "images": images}, {"path": "b", "identities": names})
    first, second = two
    assert sizes == [3, 4]
    assert people_in(source) == {
        "a/anna": [first["anna"][0], first["anna"][2]],
        "a/ben": first["ben"][1:],
        "b/carl": second["carl"],
        "b/dora": second["dora"],
    }
    assert "anna_0003.jpg" in source.describe(1) and source.num_classes == 4
    assert source.fingerprint() != opened(tmp_path, {"path": "a"}, {"path": "b", "identities": names})[0].fingerprint()
    both = {"path": "b", "identities": names, "images": written(tmp_path / "more.txt", 0, 2, 5)}
    assert people_in(opened(tmp_path, both)[0]) == {"carl": second["carl"][:1], "dora": second["dora"]}


def test_a_list_of_images_may_be_an_array(tmp_path, two):
    np.save(tmp_path / "images.npy", np.array([4, 0, 2], np.uint16))
    source, sizes = opened(tmp_path, {"path": "a", "images": str(tmp_path / "images.npy")})
    assert sizes == [3] and people_in(source) == {
        "anna": [two[0]["anna"][0], two[0]["anna"][2]],
        "ben": two[0]["ben"][1:],
    }
    for content, said in [
        ([0, 5], "there is no image 5 among 5"),
        ([-1], "no image -1"),
        ([0.0], "not a row of whole"),
    ]:
        np.save(tmp_path / "images.npy", np.array(content))
        with pytest.raises(UserError, match=said):
            opened(tmp_path, {"path": "a", "images": str(tmp_path / "images.npy")})
    for content in (b"text", b"PK\x03\x04" + bytes(99)):  # the latter numpy takes for an archive
        (tmp_path / "images.npy").write_bytes(content)
        with pytest.raises(UserError, match="is no sound .npy file"):
            opened(tmp_path, {"path": "a", "images": str(tmp_path / "images.npy")})


def test_a_shared_class_whose_first_images_do_not_count(tmp_path, two):
    only = {"path": "a", "labels": "shared", "identities": written(tmp_path / "ben.txt", "ben")}
    source, _ = opened(tmp_path, only, {"path": "b", "labels": "shared"})
    assert people_in(source) == {"b/anna": two[1]["anna"], "a/ben": two[0]["ben"], "b/carl": two[1]["carl"],
                                 "b/dora": two[1]["dora"]}  # fmt: skip
    assert source.labels(np.arange(len(source))).tolist() == [1, 1, 0, 0, 2, 2, 2, 3]


def test_changes_come_first_and_what_they_leave_out_does_not_count(tmp_path, two):
    joined = open_sources([tmp_path / "a", tmp_path / "b"])
    Changes.of(joined, {1: (NOBODY, "noise"), 5: (0, "it is a's Anna"), 9: (5, "a new person")}).save(
        tmp_path / "changes.txt"
    )
    first, second = two
    source, sizes = opened(tmp_path, {"path": "a"}, {"path": "b"}, changes=[tmp_path / "changes.txt"])
    assert sizes == [4, 6]
    assert people_in(source) == {
        "a/anna": [first["anna"][0], first["anna"][2], second["anna"][0]],
        "a/ben": first["ben"],
        "b/anna": second["anna"][1:],
        "b/carl": second["carl"][:2],
        "b/dora": second["dora"],
        "b/carl~5": second["carl"][2:],
    }
    few = {"path": "b", "identities": written(tmp_path / "few.txt", "carl")}  # by the labels that the set has
    source, sizes = opened(tmp_path, {"path": "a"}, few, changes=[tmp_path / "changes.txt"])
    assert sizes == [4, 3] and people_in(source)["b/carl~5"] == second["carl"][2:]


@pytest.mark.parametrize(
    ("option", "lines", "said"),
    [
        ("images", ["0", "6"], r"x\.txt, line 4: '6' is no image of 6 in .*b"),
        ("images", ["anna"], "line 3: 'anna' is no image"),
        ("identities", ["Anna"], "line 3: .*b has no identity 'Anna'"),
        ("identities", [], "no image of .*b is left"),
        ("labels", ["anna ben"], "line 3 is not 'name<TAB>class': 'anna ben'"),
        ("labels", ["eve\tben"], "line 3: .*b has no identity 'eve'"),
        ("labels", ["anna\tben", "anna\tcarl"], "line 4: 'anna' has a second class"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_by_its_line(tmp_path, two, option, lines, said):
    with pytest.raises(UserError, match=said):
        opened(tmp_path, {"path": "a"}, {"path": "b", option: written(tmp_path / "x.txt", *lines)})


def test_no_set_is_named_twice(tmp_path, two):
    with pytest.raises(UserError, match="is given twice"):
        opened(tmp_path, {"path": "a"}, {"path": "a"})
