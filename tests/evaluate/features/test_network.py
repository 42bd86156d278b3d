import argparse

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from evaluate.features.network import load_network
from evaluate.features.options import add_network_options
from evaluate.features.preprocessing import input_options
from models import create_model
from tests.evaluate.networks import write_onnx

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


def test_the_digest_knows_what_tensors_do_not_tell(tmp_path):
    """Two networks of the same tensors, which take other pairs of places into their pooling."""
    digests, found = [], []
    for share in (0.1, 0.9):
        torch.manual_seed(0)
        options = {"embedding_size": 8, "width": 0.25, "pool": "pair_relation", "pair_rank": 8, "pair_share": share}
        tensors = create_model("r18", input_size=112, **options).state_dict()
        for name in tensors:
            tensors[name] *= 1e-9 if name.endswith("attention_p") else 1  # or one pair would have all of the attention
        torch.save(tensors, tmp_path / "model.pt")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "r18", "input_size": 112, **options}}))
        network = load_network(tmp_path)
        digests.append(network.digest())
        found.append(outputs(network.model))
    assert not torch.equal(*found) and digests[0] != digests[1]
    assert load_network(tmp_path / "model.pt").digest() == digests[1]


def test_the_digest_knows_what_is_done_to_images_in_all_digits(tmp_path):
    """A mean of 1 is not the neutral 0, and digits beyond those of ``input`` count, too."""
    path = write_onnx(tmp_path / "a.onnx")
    others: list[dict] = [{"mean": (0.0,)}, {"mean": (1.0,)}, {"std": (0.5,)}, {"mean": (0.1234567,)}, {"bgr": True}]
    given = [{"input_range": (0.0, 2.0), **other} for other in (*others, {"mean": (0.1234568,)})]
    networks = [load_network(path, given=each) for each in given]
    assert networks[1].input.startswith("RGB in [0, 2] minus mean 1, set by")
    assert len({network.digest() for network in networks}) == len(networks)
    found, told = load_network(path), load_network(path, given={"input_range": (-1.0, 1.0)})
    assert found.digest() == told.digest()  # who told of the range does not matter


def test_the_digest_knows_tensors_beside_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = write_onnx(tmp_path / "a.onnx")
    outside = {"save_as_external_data": True, "location": "a.data", "size_threshold": 0}
    onnx.save_model(onnx.load(path), str(path), **outside)
    before = load_network(path).digest()
    data = tmp_path / "a.data"
    data.write_bytes(bytes(data.stat().st_size))
    assert load_network(path).digest() != before


def test_files_of_an_onnx_graph_are_found_wherever_a_node_keeps_a_tensor(tmp_path):
    """As an initializer, as a constant, and as a constant within a branch."""
    onnx = pytest.importorskip("onnx")
    from evaluate.features.onnx_graph import files_of

    helper = onnx.helper

    def tensor(name):
        made = onnx.numpy_helper.from_array(np.zeros(4, np.float32), name)
        onnx.external_data_helper.set_external_data(made, f"{name}.data")
        made.ClearField("raw_data")
        return made

    def constant(name):
        return helper.make_node("Constant", [], [name], value=tensor(name))

    branches = {f"{way}_branch": helper.make_graph([constant(way)], way, [], []) for way in ("then", "else")}
    nodes = [constant("own"), helper.make_node("If", ["which"], ["out"], **branches)]
    graph = helper.make_graph(nodes, "graph", [], [], [tensor("first")])
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    found = files_of(tmp_path / "a.onnx")
    assert [path.name for path in found] == ["a.onnx", "else.data", "first.data", "own.data", "then.data"]
