import numpy as np
import pytest
import torch
from torch import nn

from evaluate.checkpoint import load_network
from models import create_model

IMAGES = torch.rand(3, 3, 112, 112) * 2 - 1


def outputs(model):
    with torch.inference_mode():
        return model(IMAGES)


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
        expected = outputs(backbone)
        assert expected.abs().max() > 0.1
        assert (outputs(network.model) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("normalises, batch", [(True, "n"), (False, "n"), (False, 1)])
def test_onnx(tmp_path, normalises, batch):
    """With and without its own normalisation, which the first two nodes tell, and with a fixed batch of one."""
    onnx = pytest.importorskip("onnx")
    weights = np.random.default_rng(0).standard_normal((48, 5)).astype(np.float32)
    helper, data = onnx.helper, onnx.numpy_helper.from_array
    steps = [("Sub", ["x", "mean"]), ("Mul", ["Sub", "scale"])] if normalises else []
    steps += [("Flatten", [steps[-1][0] if steps else "x"]), ("MatMul", ["Flatten", "w"])]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [kind]) for kind, inputs in steps],
        "network",
        [helper.make_tensor_value_info("x", 1, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("MatMul", 1, None)],
        [data(weights, "w"), data(np.float32(127.5), "mean"), data(np.float32(1 / 127.5), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    network = load_network(tmp_path / "net.onnx")
    images = IMAGES[:, :, :4, :4]
    assert network.input_size == 4
    torch.testing.assert_close(
        network.model(images), images.flatten(1) @ torch.from_numpy(weights), atol=1e-4, rtol=1e-4
    )


def test_what_is_not_there_or_not_a_network_is_named(tmp_path):
    for name in ("run", "a.onnx"):
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            load_network(tmp_path / name)
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="bad.onnx is no usable ONNX file"):
        load_network(tmp_path / "bad.onnx")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="linear.pt"):
        load_network(tmp_path / "linear.pt")
