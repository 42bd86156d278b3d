from pathlib import Path

import pytest

from pipelines.common.files import distinct_names


@pytest.mark.parametrize(
    "paths, names",
    [
        (["lfw", "cfp_fp"], ["lfw", "cfp_fp"]),
        (["a/lfw", "b/lfw", "b/agedb_30"], ["a/lfw", "b/lfw", "agedb_30"]),
        (["/data/lfw/x/set", "/data/cfp/x/set", "set.v2", "set.v3"], ["lfw/x/set", "cfp/x/set", "set.v2", "set.v3"]),
        (["/lfw", "/a/lfw", "/b/a/lfw"], ["lfw", "a/lfw", "b/a/lfw"]),
        ([], []),
    ],
)
def test_paths_of_one_name_are_told_apart_by_their_folders(paths, names):
    assert distinct_names([Path(path) for path in paths]) == names == distinct_names(paths)


def test_a_relative_path_gets_the_folder_it_lies_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert distinct_names(["lfw", "sub/../../there/lfw"]) == ["here/lfw", "there/lfw"]


def test_one_path_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a/lfw is given twice"):
        distinct_names(["a/lfw", "b/lfw", str(tmp_path / "a" / "lfw")])
