"""Models of timm as backbones."""

import sys

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from models import create_model, model_names
from models.export import main as export
from models.folding import fold_batch_norms
from models.inspect import Speed, cost
from models.inspect import main as inspect
from models.onnx_file import export_onnx
from models.pretrained import from_pretrained, save_pretrained
from models.registry import BACKBONES, model_arguments
from models.weights import load_backbone, load_weights
from pipelines.common.command import run
from pipelines.common.errors import UserError
from tests.models.support import same
from train.build import with_sync_batchnorm
from train.config import validated
from train.recipes.backbones import TwoPart, require

# A network with batch norms that hold activations, one with layer norms, one of tokens; each has few parameters.
TINY = ("timm/test_efficientnet", "timm/test_convnext", "timm/test_vit")
SIZE = 64


def new(name, embedding_size=16, **options):
    torch.manual_seed(0)
    return create_model(name, embedding_size, SIZE, **options)


def images(count=3):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def used(name, **options):
    """A backbone whose batch norms have seen something."""
    model = new(name, **options).train()
    with torch.no_grad():
        model(images(8) + 0.1)
    return model.eval()


@pytest.mark.parametrize(
    "name, millions, gmac",
    [
        ("resnet18", 11.69, 1.82),
        ("convnext_atto", 3.70, 0.55),
        ("vit_tiny_patch16_224", 5.72, 1.26),
        ("mobilenetv3_small_100", 2.54, 0.06),
        pytest.param("resnet50", 25.56, 4.11, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 5.29, 0.40, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 28.59, 4.47, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", 28.29, 4.51, marks=pytest.mark.slow),
        pytest.param("edgenext_small", 5.59, 1.26 * (224 / 256) ** 2, marks=pytest.mark.slow),
    ],
)
def test_published_cost(name, millions, gmac):
    """With timm's own head, on images of 224 pixels; the ViT's with the products of its attention, as DeiT's paper."""
    found = cost(name=f"timm/{name}", embedding_size=1000, input_size=224, pool="own")
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert found.gmac == pytest.approx(gmac, abs=0.03)


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224", *TINY])
def test_embedding_is_the_iresnets_head_on_the_last_features(name):
    model = used(name)
    theirs = timm.create_model(
        name.removeprefix("timm/"), num_classes=0, **({"img_size": SIZE} if "vit" in name else {})
    )
    theirs.load_state_dict(model.model.state_dict(), strict=False)
    with torch.no_grad():
        features = theirs.eval().forward_features(images())
        if "vit" in name:
            features = features[:, theirs.num_prefix_tokens :].mT
        x, norm = features.flatten(2), model.norm
        x = (x - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()  # weight 1, bias 0
        x = F.linear(x.flatten(1), model.fc.weight, model.fc.bias) - model.features.running_mean
        expected = x / (model.features.running_var + 1e-5).sqrt()
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    two = require(model, TwoPart, "contraface", "r50")
    assert torch.equal(two.head(two.trunk(images())), model(images()))


def test_maps_with_channels_last_are_turned():
    model = new("timm/swin_tiny_patch4_window7_224", embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    assert model.trunk(images()).shape == (3, 192, 4)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("pool", ["flatten", "own"])
def test_every_trainable_parameter_gets_a_gradient(name, pool):
    model = new(name, pool=pool).train()
    output = model(images())
    assert output.shape == (3, 16)
    (output * torch.rand(3, 16)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_what_timms_own_head_has_is_left_out():
    """MobileNetV3's head has a convolution of a million weights behind its pooling."""
    assert not [key for key in new("timm/mobilenetv3_small_050").state_dict() if "conv_head" in key]
    assert [key for key in new("timm/mobilenetv3_small_050", pool="own").state_dict() if "conv_head" in key]


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_model_is_built_the_same_without_gradients(without_gradients):
    """What is unused is found by a gradient, wherever the model is made."""
    with without_gradients():
        found = new("timm/mobilenetv3_small_050")
    assert found.state_dict().keys() == new("timm/mobilenetv3_small_050").state_dict().keys()


@pytest.mark.parametrize("name", [*TINY[:1], "timm/test_vit"])
def test_checkpointing_changes_nothing(name):
    results = []
    for switch in (False, True):
        model = new(name, checkpoint_activations=switch, pool="own").train()
        results.append((output := model(images()), model))
        output.square().sum().backward()
    (plain, one), (again, other) = results
    torch.testing.assert_close(plain, again)
    for a, b in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for (key, a), b in zip(one.named_buffers(), other.buffers()):
        torch.testing.assert_close(a, b, msg=key)


def test_checkpointing_is_an_option_where_timm_has_it():
    assert "checkpoint_activations" in model_arguments("timm/test_vit")
    assert "checkpoint_activations" not in model_arguments("timm/dla34")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("pool", ["flatten", "own"])
def test_onnx_gives_the_same(tmp_path, name, pool):
    assert export_onnx(used(name, pool=pool), tmp_path / "x.onnx", SIZE) < 1e-4


def test_folding_keeps_activations():
    model = used("timm/test_efficientnet")
    with torch.no_grad():
        expected = model(images())
        fold_batch_norms(model, images())
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


def test_synchronised_norms_keep_activations():
    """What torch's own conversion makes of them has none."""
    before = sum(isinstance(module, nn.SiLU) for module in new(TINY[0]).modules())
    model = with_sync_batchnorm(new(TINY[0]))
    assert before == sum(isinstance(module, nn.SiLU) for module in model.modules()) > 3
    assert isinstance(model.features, nn.SyncBatchNorm)
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm.BatchNorm2d)]


def published(name, **options):
    """A state dict as timm gives it out."""
    torch.manual_seed(3)
    return timm.create_model(name.removeprefix("timm/"), **options).state_dict()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("pool", "file"), [("flatten", "x.safetensors"), ("own", "x.pth")])
def test_weights_of_timm_go_to_its_part(tmp_path, name, pool, file):
    tensors = published(name)  # for images of 160 pixels
    if file.endswith("pth"):
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}}, tmp_path / file
        )
    else:
        save_file(tensors, tmp_path / file)
    model, before = new(name, pool=pool), new(name, pool=pool).state_dict()
    with pytest.warns(UserWarning, match="head that makes the embeddings is new; . of its tensors have no place here"):
        load_weights(model, tmp_path / file)
    classifier = timm.get_pretrained_cfg(name.removeprefix("timm/")).classifier
    for key, tensor in model.state_dict().items():
        own = key.removeprefix("model.")
        if own == key or own.startswith(f"{classifier}."):
            assert torch.equal(tensor, before[key]), key
        elif "pos_embed" not in key:
            assert torch.equal(tensor, tensors[own]), key
    if "vit" in name:
        grid = model.model.patch_embed.grid_size
        old = tensors["pos_embed"]
        side = int(old.shape[1] ** 0.5)
        places = old[:, -side * side :].mT.unflatten(2, (side, side))
        resized = F.interpolate(places, grid, mode="bicubic", antialias=True).flatten(2).mT
        torch.testing.assert_close(model.model.pos_embed[:, -grid[0] * grid[1] :], resized, rtol=1e-4, atol=1e-5)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(published("test_convnext"), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth: the weights are not those of timm/test_vit: .*Missing key"):
        load_weights(new("timm/test_vit"), tmp_path / "x.pth")


def test_files_of_ours_load_again(tmp_path, monkeypatch, capsys):
    """A run's folder, a folder in Hugging Face's layout, and a bare file with its name."""
    options = {"name": "timm/test_efficientnet", "embedding_size": 16, "input_size": SIZE}
    model = used("timm/test_efficientnet")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": options, "data": {"train": "x"}}))
    torch.save(model.state_dict(), folder / "model.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    save_pretrained(model, options, tmp_path / "hub", "")
    assert load_backbone(folder)[1] == options
    assert same(load_backbone(folder)[0], model)
    assert same(from_pretrained(tmp_path / "hub"), model)
    found, told = load_backbone(tmp_path / "bare.pt", name=options["name"], input_size=SIZE)
    assert same(found, model)
    assert told == options
    other = new("timm/test_efficientnet")
    load_weights(other, folder)
    assert same(other, model)
    onnx = str(tmp_path / "x.onnx")
    monkeypatch.setattr(sys, "argv", ["export", "--checkpoint", str(folder), "--output", onnx])
    run(export)
    assert "agree to" in capsys.readouterr().out


def test_commands_know_the_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inspect", "timm/test_vit?"])
    run(inspect)
    table = capsys.readouterr().out
    assert "timm/test_vit2" in table and "timm/test_vit3" in table
    monkeypatch.setattr("models.inspect.speed", lambda *args: Speed(7.0, 3.0))
    monkeypatch.setattr(sys, "argv", ["inspect", "timm/test_vit"])
    run(inspect)
    assert "7.0" in capsys.readouterr().out
    names = model_names("timm/*")
    assert len(names) > 1000 and "timm/resnet18" in names
    assert not [name for name in model_names() if name.startswith("timm/")]
    assert "timm/resnet18" in BACKBONES


def config(**model):
    return validated({"data": {"train": "x"}, "output": "y", "model": model}, "x.yaml")


def test_mistakes_are_named():
    with pytest.raises(UserError, match="timm has no model 'resnet81'; did you mean 'timm/resnet18'"):
        create_model("timm/resnet81")
    with pytest.raises(UserError, match="model.name: timm has no model 'resnet81'; did you mean 'timm/resnet18'"):
        config(name="timm/resnet81")
    with pytest.raises(UserError, match="timm has no model 'hf-hub:"):
        create_model("timm/hf-hub:timm/resnet18")
    with pytest.raises(UserError, match="unknown option of timm/test_vit 'drop_path'; did you mean 'drop_path_rate'"):
        create_model("timm/test_vit", drop_path=0.1)
    with pytest.raises(UserError, match=r"unknown key model.drop_path_rat; did you mean model.drop_path_rate\?"):
        config(name="timm/test_vit", drop_path_rat=0.1)
    with pytest.raises(UserError, match="model.pool"):
        config(name="timm/test_vit", pool="avg")
    works = "what works is model.input_size=240 model.pool=own"
    with pytest.raises(UserError, match=f"crossvit_9_240 takes no images of 112 pixels: .*; {works}"):
        create_model("timm/crossvit_9_240")
    with pytest.raises(UserError, match=f"it has no single map of features; {works}"):
        create_model("timm/crossvit_9_240", input_size=240)
    assert config(name="timm/test_vit", drop_path_rate=0.1, pool="own").model.options == {
        "drop_path_rate": 0.1,
        "pool": "own",
    }


def test_options_go_to_timm():
    model = new("timm/test_vit", drop_path_rate=0.25)
    assert model.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.25)


@pytest.mark.parametrize(
    "error, message",
    [
        (ImportError("No module named 'timm'"), "pip install 'facemill"),
        (RuntimeError("nms does not exist"), "torchvision"),
    ],
)
def test_a_missing_timm_is_told(monkeypatch, error, message):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "timm":
                raise error

    for name in [each for each in sys.modules if each.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(UserError, match=message):
        create_model("timm/resnet18")
