import argparse

import pytest
import torch
from torch import nn

from evaluate.features.network import load_network
from evaluate.features.options import add_network_options
from evaluate.features.preprocessing import input_options
from models import create_model

IMAGES = torch.rand(3, 3, 112, 112) * 2 - 1


def outputs(model):
    with torch.inference_mode():
        return model(IMAGES)


def close(found, expected):
    assert (found - expected).norm() < 1e-3 * expected.norm() and expected.norm() > 0.1


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = create_model("mbf", embedding_size=64)
    for module in model.modules():  # a fresh one's embeddings are as good as zero
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


def test_a_state_dict_and_a_run_folder(backbone, tmp_path):
    torch.save(backbone.state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text("model: {name: mbf, embedding_size: 64, input_size: 112}\n")
    for path in (tmp_path, tmp_path / "model.pt"):
        network = load_network(path)
        assert network.input_size == 112 and not network.model.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.model.modules())  # all are folded
        expected = outputs(backbone)
        assert expected.abs().max() > 0.1
        assert (outputs(network.model) - expected).norm() < 1e-3 * expected.norm()


def test_what_a_state_dict_takes_can_be_told(backbone, tmp_path):
    torch.save(backbone.state_dict(), tmp_path / "model.pt")
    assert load_network(tmp_path / "model.pt").input == "RGB in [-1, 1]"
    network = load_network(tmp_path / "model.pt", None, "cpu", {"input_range": (0.0, 1.0), "bgr": True})
    assert network.input == "BGR in [0, 1], set by --input-range, --bgr"
    close(outputs(network.model), backbone((IMAGES[:, [2, 1, 0]] + 1) / 2))


@pytest.mark.parametrize(
    ("given", "text", "taken"),
    [
        ({}, "BGR in [0, 1], as the checkpoint tells", lambda images: (images[:, [2, 1, 0]] + 1) / 2),
        ({"bgr": True}, "BGR in [0, 1], as the checkpoint tells, set", lambda images: (images[:, [2, 1, 0]] + 1) / 2),
        ({"bgr": False}, "RGB in [0, 1], as the checkpoint tells, set", lambda images: (images + 1) / 2),
        ({"input_range": (-1.0, 1.0)}, "BGR in [-1, 1], set by --input-range", lambda images: images[:, [2, 1, 0]]),
    ],
)
def test_what_magfaces_layout_tells_and_who_overrules_it(tmp_path, given, text, taken):
    """Nothing is turned or scaled twice, in the backbone and in front of it."""
    torch.manual_seed(0)
    backbone = create_model("r18", embedding_size=8, width=0.25).eval()
    tensors = {f"features.module.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "magface.pth")
    network = load_network(tmp_path / "magface.pth", None, "cpu", given)
    assert network.input.startswith(text)
    close(outputs(network.model), backbone(taken(IMAGES)))


def parse(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    add_network_options(parser)
    return input_options(parser.parse_args([*words, "data"]))


def test_options():
    assert parse() == {}
    assert parse("--bgr", "--input-range", "-1,1") == {"bgr": True, "input_range": (-1, 1)}
    assert parse("--no-bgr", "--input-range=0,255") == {"bgr": False, "input_range": (0, 255)}
    told = parse("--input-range", "0,1", "--mean", "-.5,0,.5", "--std", "0.5")
    assert told == {"input_range": (0, 1), "mean": (-0.5, 0, 0.5), "std": (0.5,)}
    with pytest.raises(ValueError, match="give it too"):
        parse("--mean", "127.5")


@pytest.mark.parametrize(
    "words",
    [
        ("--input-range", "1,0"),
        ("--input-range", "255"),
        ("--input-range", "0,inf"),
        ("--mean", "1,2"),
        ("--mean", "nan"),
        ("--std", "0"),
        ("--std", "1,1,-1"),
        ("--batch-size", "0"),
        ("--threads", "-1"),
    ],
)
def test_options_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_what_is_not_there_or_not_a_network_is_named(tmp_path):
    for name in ("run", "a.onnx", "a.ONNX"):
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            load_network(tmp_path / name)
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad.onnx is no usable ONNX file"):
        load_network(tmp_path / "bad.onnx")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="linear.pt"):
        load_network(tmp_path / "linear.pt")


@pytest.mark.parametrize("option", ["--mean=a", "--mean=1,2", "--std=0", "--input-range=3", "--input-range=1,x"])
def test_options_that_are_no_numbers_are_refused_in_words(option, capsys):
    parser = argparse.ArgumentParser()
    add_network_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([option])
    assert f"'{option.partition('=')[2]}' is n" in capsys.readouterr().err
