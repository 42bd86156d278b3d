"""Updates of low rank: nothing at first, then what their product adds, under the network's own names once merged."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from models import create_model
from models.lora import add_lora, merged

NETWORKS = {
    "r18": {"width": 0.125, "input_size": 32},
    "mbf": {"width": 0.25, "input_size": 32},
    "vit_t": {"input_size": 36, "mask_ratio": 0.0},
}


def network(name, seed=0):
    torch.manual_seed(seed)
    model = create_model(name, 16, **NETWORKS[name])
    images = torch.randn(4, 3, NETWORKS[name]["input_size"], NETWORKS[name]["input_size"])
    return model.eval().double(), images.double()


def adapted(model, seed=1, **options):
    torch.manual_seed(seed)
    changed = deepcopy(model)
    add_lora(changed, **{"rank": 2, "alpha": 6.0, "match": ["*"]} | options)
    return changed


@pytest.mark.parametrize("name", NETWORKS)
def test_it_starts_at_the_identity(name):
    model, images = network(name)
    changed = adapted(model)
    assert torch.equal(changed(images), model(images))
    state = merged(changed.state_dict())
    assert all(torch.equal(state.pop(key), value) for key, value in model.state_dict().items()) and not state


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_is_unmerged(name):
    model, images = network(name)
    changed = adapted(model)
    with torch.no_grad():
        for key, parameter in changed.named_parameters():
            if key.endswith(".up"):
                parameter.normal_(std=0.05)
    found = changed(images)
    assert (found - model(images)).norm() > 0.01 * found.norm()
    model.load_state_dict(merged(changed.state_dict()))
    torch.testing.assert_close(model(images), found, rtol=1e-9, atol=1e-9)


def test_a_convolution_is_two():
    """Written as the two convolutions that the update is, beside the layer itself."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1).double()
    model = nn.Sequential(layer)
    images = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    plain = layer(images)
    add_lora(model, rank=4, alpha=2, match=["0.weight"])
    update = model[0].parametrizations.weight[0]
    nn.init.normal_(update.up)
    inner = nn.functional.conv2d(images, update.down.view(4, 6, 3, 3), stride=2, padding=1)
    expected = plain + 2 / 4 * nn.functional.conv2d(inner, update.up.view(10, 4, 1, 1))
    torch.testing.assert_close(model(images), expected)


def test_which_layers_take_part():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 40))
    changed = adapted(model, rank=4)  # of 8 x 8 that would be 64 numbers for 64
    assert [key for key, _ in changed.named_parameters() if "up" in key] == ["3.parametrizations.weight.0.up"]
    chosen = adapted(model, rank=3, match=["1.*"])
    assert [key for key, _ in chosen.named_parameters() if "up" in key] == ["1.parametrizations.weight.0.up"]
    for pattern in ("0.*", "2.*", "4.*"):
        with pytest.raises(ValueError, match=r"matches the weight of no layer .* names are such as 1.weight, 3.weight"):
            adapted(model, rank=3, match=["3.*", pattern])
