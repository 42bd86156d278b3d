"""EdgeFace, against what its authors publish."""

import pytest
import timm
import torch
from torch import nn

from models import create_model
from models.inspect import cost
from models.onnx_file import export_onnx
from models.weights import load_backbone
from tests.models.support import same


@pytest.mark.parametrize(
    "name, millions, mflops",
    [
        ("edgeface_xxs", 1.24, 94.72),
        ("edgeface_xs_gamma_06", 1.77, 154.00),
        ("edgeface_s_gamma_05", 3.65, 306.12),
        pytest.param("edgeface_base", 18.23, 1398.83, marks=pytest.mark.slow),
    ],
)
def test_published_cost(name, millions, mflops):
    """The table in otroshi/edgeface, where a multiply-add is two operations."""
    found = cost(name=name)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert found.gmac * 2e3 == pytest.approx(mflops, rel=0.003)


def test_layers_of_low_rank_give_what_their_product_gives():
    torch.manual_seed(0)
    model = create_model("edgeface_xs_gamma_06").eval()
    whole = timm.create_model("edgenext_x_small", num_classes=512).eval()
    state = {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}
    for key in [key for key in state if key.endswith("linear1.weight")]:
        layer, down = key.removesuffix(".linear1.weight"), state.pop(key)
        up, bias = state.pop(f"{layer}.linear2.weight"), state.pop(f"{layer}.linear2.bias", None)
        assert len(down) == max(2, int(0.6 * min(len(up), down.shape[1])))
        state |= {f"{layer}.weight": up @ down} | ({} if bias is None else {f"{layer}.bias": bias})
    whole.load_state_dict(state)
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(images), whole(images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["edgeface_xxs", "edgeface_xs_gamma_06"])
def test_files_are_told_from_their_tensors(tmp_path, name):
    model = create_model(name, embedding_size=32)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    found, options = load_backbone(tmp_path / "x.pt")
    assert options == {"name": name, "embedding_size": 32, "input_size": 112}
    assert same(found, model)


def test_onnx_gives_the_same(tmp_path):
    assert export_onnx(create_model("edgeface_xxs", embedding_size=32).eval(), tmp_path / "x.onnx", 112) < 1e-4


def quantised(model):
    """The state dict after dynamic quantisation, with one scale for all weights of a layer."""
    state = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(prefix=name, recurse=False)) | dict(
            module.named_buffers(name, recurse=False)
        )
        if not isinstance(module, nn.Linear):
            state |= {key: tensor.detach() for key, tensor in own.items()}
            continue
        scale = module.weight.detach().abs().max().item() / 127
        weight = torch.quantize_per_tensor(module.weight.detach(), scale, 0, torch.qint8)
        state |= {f"{name}.scale": torch.tensor(1.0), f"{name}.zero_point": torch.tensor(0)}
        state |= {f"{name}._packed_params.dtype": torch.qint8}
        state |= {
            f"{name}._packed_params._packed_params": (
                weight,
                module.bias if module.bias is None else module.bias.detach(),
            )
        }
    return state


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_dequantised(tmp_path):
    torch.manual_seed(0)
    model = create_model("edgeface_xxs", embedding_size=32)
    torch.save(quantised(model), tmp_path / "q.pt")
    found, options = load_backbone(tmp_path / "q.pt")
    assert options["name"] == "edgeface_xxs"
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for key, tensor in model.state_dict().items():
        error = (found.state_dict()[key] - tensor).abs().max().item()
        assert error <= (tensor.abs().max().item() / 127 * 0.501 if key in linear else 0), key


@torch.no_grad()
def test_published_quantised_file(shared):
    """Beside PyTorch's own network of 8 bits, which rounds the images' values too, it gives nearly the same."""
    model, options = load_backbone(shared / "faces" / "weights" / "edgeface_xxs_q.pt")
    assert options == {"name": "edgeface_xxs", "embedding_size": 512, "input_size": 112}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
