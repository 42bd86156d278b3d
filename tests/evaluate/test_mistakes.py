"""What is told before the long work: nothing else that is named here is there."""

import pytest

from evaluate import folders, ijb, ijbs, labels, megaface, overlap, quantise, tinyface, verification
from tests.command import called
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import write_folder

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


@pytest.mark.parametrize("option", [["--cache", "c"], ["--precision", "bf16"], ["--no-bgr"], ["--network", "r50"]])
@pytest.mark.parametrize("main", [ijb.main, labels.main, megaface.main], ids=lambda main: main.__module__)
def test_options_of_a_network_where_there_is_none(main, option):
    arguments = COMMANDS.get(main, ["data", "--features", "features.npy"])
    ended = called(main, *arguments, "--output", "results", *option)
    told = f"error: {option[0].replace('no-', '')}: only for the network that --checkpoint names"
    assert ended.code == 2 and ended.error.splitlines()[-1].endswith(told)


@pytest.mark.parametrize(
    "option, message",
    [
        (["--precision", "bf16"], "--precision bf16 is not for a.onnx: an .onnx file computes in the precision"),
        (["--network", "r50"], "a.onnx holds its network itself: --network r50 is for state dicts, leave it out"),
    ],
)
def test_options_of_a_state_dict_with_an_onnx_file(tmp_path, monkeypatch, option, message):
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "a.onnx")
    write_folder(tmp_path / "data", dict.fromkeys("abcdefgh", 3))
    ended = called(folders.main, "data", "--checkpoint", "a.onnx", "--output", "out", "--cache", "cache", *option)
    assert ended.code == 2 and ended.error.startswith(f"error: {message}") and ended.error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_file_to_quantise_needs_no_name_of_a_backbone():
    arguments = "a.onnx", "--calibrate", "d", "--bins", "lfw.bin", "--output", "b.onnx"
    ended = called(quantise.main, *arguments, "--network", "r50")
    assert ended.code == 2 and "unrecognized arguments: --network r50" in ended.error
