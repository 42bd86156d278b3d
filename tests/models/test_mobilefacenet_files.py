"""MobileFaceNets that other projects published."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evaluate.features.network import load_network
from models import create_model
from models.weights import load_backbone, load_weights
from tests.models.support import small, with_statistics

# Expansion, channels, repetitions and stride of the bottlenecks in the paper's table 1.
TABLE = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


class Network:
    """A network written out, whose layers make their tensors when they are first called, as its project names them."""

    def __init__(self, tensors=None):
        self.tensors = {} if tensors is None else tensors
        self.made = tensors is None

    def tensor(self, name, *shape, low=-0.1, high=0.1):
        if self.made:
            self.tensors[name] = torch.empty(shape).uniform_(low, high)
        return self.tensors[name].double()

    def conv(self, x, name, out, kernel=1, stride=1, depthwise=False, padding=None, bias=False):
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        weight = self.tensor(f"{name}.weight", out, 1 if depthwise else x.shape[1], *sides)
        own = self.tensor(f"{name}.bias", out) if bias else None
        padding = (sides[0] - 1) // 2 if padding is None else padding
        return F.conv2d(x, weight, own, stride, padding, groups=x.shape[1] if depthwise else 1)

    def norm(self, x, name):
        if self.made:
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        scale, shift = (self.tensor(f"{name}.{part}", x.shape[1], low=0.5, high=1.5) for part in ("weight", "bias"))
        mean = self.tensor(f"{name}.running_mean", x.shape[1])
        variance = self.tensor(f"{name}.running_var", x.shape[1], low=0.5, high=1.5)
        return F.batch_norm(x, mean, variance, scale, shift)

    def prelu(self, x, name):
        return F.prelu(x, self.tensor(f"{name}.weight", x.shape[1]))


def foamliu(images, tensors=None):
    """What foamliu/MobileFaceNet makes of normalised images, and its tensors."""
    net = Network(tensors)
    x = F.relu6(net.norm(net.conv(images, "conv1.0", 64, 3, 2), "conv1.1"))
    x = F.relu(net.norm(net.conv(x, "dw_conv.depthwise", 64, 3, depthwise=True), "dw_conv.bn1"))
    x = F.relu(net.norm(net.conv(x, "dw_conv.pointwise", 64), "dw_conv.bn2"))
    number = 0
    for expansion, channels, repetitions, stride in TABLE:
        for repetition in range(repetitions):
            name, hidden = f"features.{number}.conv", expansion * x.shape[1]
            y = F.relu6(net.norm(net.conv(x, f"{name}.0.0", hidden), f"{name}.0.1"))
            y = net.conv(y, f"{name}.1.0", hidden, 3, stride if repetition == 0 else 1, depthwise=True)
            y = net.norm(net.conv(F.relu6(net.norm(y, f"{name}.1.1")), f"{name}.2", channels), f"{name}.3")
            x, number = y if y.shape != x.shape else x + y, number + 1
    x = F.relu6(net.norm(net.conv(x, "conv2.0", 512), "conv2.1"))
    x = net.norm(net.conv(x, "gdconv.depthwise", 512, x.shape[2], depthwise=True, padding=0), "gdconv.bn")
    return net.norm(net.conv(x, "conv3", 128, bias=True), "bn").flatten(1), net.tensors


def xiaoccer(images):
    """What Xiaoccer/MobileFaceNet_Pytorch makes of images of 112×96 pixels, and its tensors."""
    net = Network()

    def block(x, name, out, kernel=1, stride=1, depthwise=False, linear=False, padding=None):
        y = net.norm(net.conv(x, f"{name}.conv", out, kernel, stride, depthwise, padding), f"{name}.bn")
        return y if linear else net.prelu(y, f"{name}.prelu")

    x = block(images, "conv1", 64, 3, 2)
    x = block(x, "dw_conv1", 64, 3, depthwise=True)
    number = 0
    for expansion, channels, repetitions, stride in TABLE:
        for repetition in range(repetitions):
            name, hidden = f"blocks.{number}.conv", expansion * x.shape[1]
            y = net.prelu(net.norm(net.conv(x, f"{name}.0", hidden), f"{name}.1"), f"{name}.2")
            y = net.conv(y, f"{name}.3", hidden, 3, stride if repetition == 0 else 1, depthwise=True)
            y = net.prelu(net.norm(y, f"{name}.4"), f"{name}.5")
            y = net.norm(net.conv(y, f"{name}.6", channels), f"{name}.7")
            x, number = y if y.shape != x.shape else x + y, number + 1
    x = block(x, "conv2", 512)
    x = block(x, "linear7", 512, (x.shape[2], x.shape[3]), depthwise=True, linear=True, padding=0)
    return block(x, "linear1", 128, linear=True).flatten(1), net.tensors


# Of double precision: rounding grows in fifty layers of random weights.
IMAGES = torch.rand(2, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalised(images):
    """By ImageNet's means and standard deviations."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    return ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]


def relative(found, expected):
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max()


@torch.no_grad()
def test_foamlius_network(tmp_path):
    torch.manual_seed(0)
    expected, tensors = foamliu(normalised(IMAGES))
    torch.save(tensors, tmp_path / "x.pt")
    model, options = load_backbone(tmp_path / "x.pt")
    assert options == {"name": "mobilefacenet_relu6", "embedding_size": 128, "input_size": 112, "imagenet": True}
    assert relative(model.double()(IMAGES), expected) < 1e-5
    told = load_network(tmp_path / "x.pt").input
    assert told.startswith("RGB in [0, 1] minus mean 0.485, 0.456, 0.406") and told.endswith("as the checkpoint tells")
    other = load_network(tmp_path / "x.pt", given={"bgr": True}).model.double()  # normalises before the backbone
    assert relative(other(IMAGES.flip(1)), expected) < 1e-5
    plain = create_model("mobilefacenet_relu6", 128).double().eval()
    with pytest.warns(UserWarning, match="foamliu/MobileFaceNet, which trains on other images: .*imagenet=True"):
        load_weights(plain, tmp_path / "x.pt")
    assert relative(plain(normalised(IMAGES)), expected) < 1e-5


@torch.no_grad()
def test_xiaoccers_network(tmp_path):
    torch.manual_seed(0)
    expected, tensors = xiaoccer(IMAGES[..., 8:104])
    torch.save({"epoch": 68, "net_state_dict": tensors}, tmp_path / "x.ckpt")
    model, options = load_backbone(tmp_path / "x.ckpt")
    assert options == {"name": "mobilefacenet", "embedding_size": 128, "input_size": 112, "portrait": True}
    assert relative(model.double()(IMAGES), expected) < 1e-5


@torch.no_grad()
def test_foamlius_published_file(shared):
    path = shared / "faces" / "weights" / "foamliu_mobilefacenet.pt"
    model, options = load_backbone(path)
    assert options["name"] == "mobilefacenet_relu6"
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    expected, _ = foamliu(normalised(IMAGES), tensors)
    assert relative(model.double()(IMAGES), expected) < 1e-5


def test_other_files_stay_as_they_are(tmp_path):
    torch.save({"net": small("mbf").state_dict()}, tmp_path / "x.pt")
    assert load_backbone(tmp_path / "x.pt")[1]["name"] == "mbf"
    torch.save({"conv2.weight": torch.zeros(3), "dw_conv.depthwise.weight": torch.zeros(3)}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "y.pt"))):
        load_backbone(tmp_path / "y.pt")


@pytest.mark.parametrize("name", ["mobilefacenet", "mobilefacenet_relu6"])
def test_papers_network_is_depthwise(name):
    model = with_statistics(create_model(name, embedding_size=16, input_size=56))
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels == m.out_channels]
    assert len(depthwise) == 1 + 15 + 1  # the second layer, one of each bottleneck, the last
    assert any(isinstance(m, nn.ReLU6) for m in model.modules()) == name.endswith("relu6")
    with torch.no_grad():
        assert model(torch.rand(2, 3, 56, 56)).shape == (2, 16)
