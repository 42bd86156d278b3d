"""What is told before the long work: nothing else that is named here is there."""

import pytest

from evaluate import folders, ijb, ijbs, labels, megaface, overlap, tinyface, verification
from tests.command import called

COMMANDS = {
    folders.main: ["data", "--checkpoint", "network"],
    ijb.main: ["--data", "data", "--features", "features.npy"],
    ijbs.main: ["--data", "data", "--lists", "lists", "--checkpoint", "network"],
    megaface.main: ["--facescrub-list", "a", "--megaface-list", "b", "--features", "features"],
    overlap.main: ["data", "test", "--checkpoint", "network"],
    tinyface.main: ["--data", "data", "--checkpoint", "network"],
    verification.main: ["--checkpoint", "network", "--bins", "lfw.bin"],
}


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_an_output_that_is_a_file(tmp_path, monkeypatch, main):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/results"):
        ended = called(main, *COMMANDS[main], "--output", output)
        assert (ended.code, ended.out) == (2, "") and "file" in ended.error and ended.error.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("text", ["nan", "inf", "much", "7", "-1.01"])
@pytest.mark.parametrize("main, option", [(labels.main, "--stray"), (overlap.main, "--threshold")])
def test_thresholds_are_cosines(main, option, text):
    ended = called(main, "data", "test", "--checkpoint", "network", option, text)
    assert ended.code == 2 and f"argument {option}: " in ended.error.splitlines()[-1]
