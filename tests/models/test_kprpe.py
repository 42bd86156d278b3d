"""The transformer with keypoint-relative positions against its formula, patch by patch."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from models import create_model
from models.inspect import cost
from models.kprpe import KeypointTransformer, relation_buckets
from models.onnx_file import export_onnx, onnx_error
from models.unmasked_vit import UnmaskedTransformer
from models.weights import load_backbone
from pipelines.common.alignment import TEMPLATE

SMALL = partial(KeypointTransformer, 16, 3, 2, 3, 12, 40, drop_path=0.0)  # 5 x 5 patches


def small():
    torch.manual_seed(0)
    model = SMALL().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return model


def piecewise(distance, alpha=1.9, beta=3.8, gamma=15.2):
    """iRPE's index of a distance, as it is in the paper; whole below beta."""
    if abs(distance) <= alpha:
        return distance
    far = alpha + math.log(abs(distance) / alpha) / math.log(gamma / alpha) * (beta - alpha)
    return int(math.copysign(min(round(far), beta), distance))


def naive(model, images, landmarks):
    """Embeddings written out from the state dict, with a loop over heads and pairs of patches."""
    state = model.state_dict()
    side, heads = 5, 2
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    x = x.flatten(2).mT + state["pos_embed"]
    for i in range(3):
        block = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in state.items() if f"blocks.{i}." in name}
        y = F.layer_norm(x, (16,), block["norm1.weight"], block["norm1.bias"])
        q, k, v = (y @ block["attn.qkv.weight"].T).split(16, 2)
        attended = torch.empty_like(q)
        for image in range(len(images)):
            for head in range(heads):
                logits = torch.empty(side**2, side**2, dtype=x.dtype)
                own = slice(8 * head, 8 * head + 8)
                for a in range(side**2):
                    place = torch.tensor([(a % side + 0.5) / side, (a // side + 0.5) / side], dtype=x.dtype)
                    away = (place - landmarks[image]).flatten()
                    for b in range(side**2):
                        rows, columns = piecewise(a // side - b // side) + 3, piecewise(a % side - b % side) + 3
                        row = ((i * heads + head) * 7 + rows) * 7 + columns
                        bias = state["keypoint_linear.weight"][row] @ away + state["keypoint_linear.bias"][row]
                        logits[a, b] = q[image, a, own] @ k[image, b, own] / math.sqrt(8) + bias
                attended[image, :, own] = logits.softmax(1) @ v[image, :, own]
        x = x + attended @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        y = F.layer_norm(x, (16,), block["norm2.weight"], block["norm2.bias"])
        y = F.relu6(y @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + y @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    x = F.layer_norm(x, (16,), state["norm.weight"], state["norm.bias"]).flatten(1)
    for linear, norm in ((0, 1), (2, 3)):
        statistics = (state[f"feature.{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x @ state[f"feature.{linear}.weight"].T, *statistics, eps=2e-5)
    return x


def test_embeddings_are_those_of_the_formula():
    model = small()
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    landmarks = torch.rand(2, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images, landmarks), naive(model, images, landmarks))


def test_distances_are_told_apart_up_to_four_patches():
    buckets = relation_buckets(14)
    assert buckets.shape == (196, 196) and buckets.unique().tolist() == list(range(49))
    along = [(int(buckets[14 * row, 0]) - 3) // 7 - 3 for row in range(14)]  # the rows' part, down a column
    assert along == [0, 1, 2, 2, *[3] * 10] == [piecewise(row) for row in range(14)]


def test_without_landmarks_those_of_the_template_are_taken():
    model = small()
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    points = torch.tensor([[(point.real + 0.5) / 112, (point.imag + 0.5) / 112] for point in TEMPLATE])
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images, points.double().expand(2, -1, -1)), rtol=1e-5, atol=0)
        assert not torch.allclose(model(images), model(images, points.double().flip(0).expand(2, -1, -1)))


def test_a_fresh_network_does_not_look_at_its_landmarks():
    model = SMALL().eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(model(images, torch.rand(2, 5, 2)), model(images))


def test_without_its_tables_it_is_cvlfaces_plain_transformer():
    model = small()
    with torch.no_grad():
        model.keypoint_linear.weight.zero_()
        model.keypoint_linear.bias.zero_()
    plain = UnmaskedTransformer(16, 3, 2, 3, 12, 40, drop_path=0.5).double().eval()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "keypoint" not in name})
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), naive(model, images, torch.rand(2, 5, 2).double()))


def test_landmarks_and_their_weights_get_gradients():
    model, images = small(), torch.rand(2, 3, 40, 40, dtype=torch.float64)
    landmarks = torch.rand(2, 5, 2, dtype=torch.float64, requires_grad=True)
    (model(images, landmarks) * torch.randn(2, 12)).sum().backward()
    assert landmarks.grad.abs().min() > 0
    assert model.keypoint_linear.weight.grad.abs().max() > 0


def test_it_is_one_graph_for_the_compiler():
    model = small()
    images, landmarks = torch.rand(2, 3, 40, 40).double(), torch.rand(2, 5, 2).double()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, landmarks), model(images, landmarks))


@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_takes_landmarks_as_a_second_input(tmp_path, dynamic):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, path = small().float(), tmp_path / "model.onnx"
    assert export_onnx(model, path, 40, dynamic_batch=dynamic) < 1e-4
    assert [each.name for each in onnx.load(path).graph.input] == ["data", "landmarks"]
    count = 5 if dynamic else 1
    images = torch.rand(count, 3, 40, 40)
    assert onnx_error(model, path, images, torch.rand(count, 5, 2)) < 1e-4


def test_half_precision_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    assert 1e-6 < export_onnx(SMALL().eval(), tmp_path / "model.onnx", 40, fp16=True) < 1e-2


def test_weights_are_found_under_the_names_of_cvlface(tmp_path):
    model = create_model("vit_s_kprpe", embedding_size=64, input_size=24)
    torch.save({f"model.net.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "pytorch.pt")
    found, options = load_backbone(tmp_path / "pytorch.pt")
    assert options == {"name": "vit_s_kprpe", "embedding_size": 64, "input_size": 24}
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *(("vit_s_kprpe", 96_004_128), ("vit_b_kprpe", 115_076_736)),
        *(("vit_s_unmasked", 95_952_384), ("vit_b_unmasked", 114_869_760)),
    ],
)
def test_parameters_are_as_many_as_in_cvlface(name, parameters):
    assert cost(name=name).parameters == parameters


def test_multiply_adds():
    """Of 196 patches: the table of each head and block is the only product beside those of a transformer."""
    n, dim, depth, heads, ratio = 196, 512, 12, 8, 5
    block = n * dim * dim * (4 + 2 * ratio) + 2 * n * n * dim
    whole = n * 3 * 64 * dim + depth * block + n * 10 * 49 * heads * depth + n * dim * dim + dim * 512
    assert cost(name="vit_s_kprpe").gmac == pytest.approx(whole / 1e9)
