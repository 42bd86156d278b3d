"""Folding leaves every network's embeddings as they are, whatever the network does with its layers' outputs."""

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from models.folding import fold_batch_norms
from models.onnx_file import export_onnx


class Layers(nn.Module):
    """Two convolutions, each with a batch norm behind it; what else happens to ``x`` is `between`'s."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.project = nn.Linear(8 * 8 * 8, 16)

    def forward(self, images):
        return self.project(self.between(self.norm1(self.first(images)).relu()).flatten(1))

    def between(self, x):
        return self.norm2(self.conv(x))


class InPlace(Layers):
    def between(self, x):
        return self.norm2(self.conv(x).relu_())


class AfterTheNorm(Layers):
    """In place, on what the norm has seen already."""

    def between(self, x):
        x = self.conv(x)
        y = self.norm2(x)
        return y + x.mul_(2)


class PreActivation(Layers):
    """The shortcut begins in front of the batch norm."""

    def between(self, x):
        x = self.conv(x)
        return x + self.norm2(x).relu()


class OfAView(Layers):
    def between(self, x):
        x = self.conv(x)
        return self.norm2(x) * x[:, :1].sigmoid()


NOT_ALONE = [InPlace, AfterTheNorm, PreActivation, OfAView]


class SharedLayer(Layers):
    """A layer in front of two batch norms."""

    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(8)

    def between(self, x):
        return self.norm2(self.conv(x)) + self.other(self.conv(2 * x))


class SharedNorm(Layers):
    """A batch norm behind a layer, and behind none."""

    def between(self, x):
        return self.norm2(self.conv(x)) + self.norm2(x)


class TwoNames(Layers):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(self.conv, self.norm2)

    def between(self, x):
        return self.block(x)


class OtherAxis(Layers):
    """A batch norm over the rows of what a linear layer gives, which are as many as its columns."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm2 = nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.project = nn.Linear(8 * 8, 16)

    def between(self, x):
        return super().between(x.flatten(2))


class OtherWidth(OtherAxis):
    """The same, where they are fewer."""

    def __init__(self):
        super().__init__()
        self.conv, self.project = nn.Linear(64, 4), nn.Linear(8 * 4, 16)


class ReadsWeights(Layers):
    def between(self, x):
        return self.norm2(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight, padding=1)


class ReadsTheNorm(Layers):
    def between(self, x):
        return self.norm2(self.conv(x)) + self.norm2.eps


class ReadsStatistics(Layers):
    """Another error than where an attribute is missing."""

    def between(self, x):
        return self.norm2(self.conv(x)) + nn.functional.batch_norm(x, *list(self.norm2.buffers())[:2])


class AsksForTheNorm(Layers):
    def between(self, x):
        assert isinstance(self.norm2, nn.BatchNorm2d)
        return self.norm2(self.conv(x))


class Computed(Layers):
    """A weight that is the product of two others."""

    def __init__(self):
        super().__init__()
        with pytest.warns(FutureWarning, match="weight_norm"):
            weight_norm(self.conv)


class Hooked(Layers):
    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda module, inputs, output: output.relu())


class OfTheBatch(Layers):
    """A batch norm without statistics of its own."""

    def __init__(self):
        super().__init__()
        self.norm2 = nn.BatchNorm2d(8, track_running_stats=False)


ODD = [
    *(SharedLayer, SharedNorm, TwoNames, OtherAxis, OtherWidth),
    *(ReadsWeights, ReadsTheNorm, ReadsStatistics, AsksForTheNorm, Computed, Hooked, OfTheBatch),
]


class Twice(Layers):
    """A layer and its batch norm, applied twice."""

    def between(self, x):
        return self.norm2(self.conv(self.norm2(self.conv(x)).relu()))


def used(kind):
    """A network in float64, in which nothing but a mistake is seen, whose batch norms are far from the identity."""
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
            if module.running_mean is not None:
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.1, 2)
    return model.double().eval()


def norms(model):
    return {name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


IMAGES = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def folded(model):
    """The model, folded by images that show nothing, once it is seen to give what it gave."""
    expected = model(IMAGES)
    fold_batch_norms(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-9, atol=1e-9)
    return model


@pytest.mark.parametrize("kind", NOT_ALONE)
def test_an_output_that_goes_elsewhere_too(kind):
    """Its batch norm stays; the other is folded as ever."""
    assert norms(folded(used(kind))) == {"norm2"}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_else_a_network_does(kind):
    assert "norm2" in norms(folded(used(kind)))


@pytest.mark.parametrize("kind", [Layers, Twice])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_can_be_folded_is(kind, mode):
    model = used(kind)
    with mode():
        assert norms(folded(model)) == set()


def test_a_network_that_diverged_is_folded_as_any():
    """Its embeddings, which are not finite, do not tell."""
    model = used(Layers)
    with torch.no_grad():
        model.project.bias.fill_(torch.inf)
    fold_batch_norms(model, IMAGES)
    assert norms(model) == set()


@pytest.mark.parametrize("kind", [InPlace, PreActivation, SharedLayer, ReadsTheNorm])
def test_onnx_of_such_networks(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    assert export_onnx(used(kind).float(), tmp_path / "x.onnx", 8, dynamic_batch=True) < 1e-5
