"""Every backbone against published implementations: names, shapes, counts, outputs; and what training adds to that."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import create_model, model_names
from models.inspect import activation_bytes
from models.ir import IR
from models.iresnet import IResNet, projection
from models.kprpe import KeypointTransformer
from models.mobilefacenet import MobileFaceNet
from models.vit import TransFace, VisionTransformer
from tests.models.support import close, with_statistics

# (family, backbone) in the manifest -> arguments of create_model
PUBLISHED = {
    **{
        ("arcface_torch", name): {"name": name}
        for name in (
            *("r18", "r34", "r50", "r100", "r200", "r2060", "mbf", "mbf_large"),
            *("vit_t", "vit_t_dp005_mask0", "vit_s", "vit_s_dp005_mask_0", "vit_b", "vit_b_dp005_mask_005"),
            *("vit_l_dp005_mask_005", "vit_h"),
        )
    },
    ("transface", "vit_t"): {"name": "transface_t"},
    ("transface", "vit_t_dp005_mask0"): {"name": "transface_t", "drop_path": 0.05, "mask_ratio": 0.0},
    ("transface", "vit_s"): {"name": "transface_s"},
    ("transface", "vit_s_dp005_mask_0"): {"name": "transface_s", "drop_path": 0.05, "mask_ratio": 0.0},
    ("transface", "vit_b"): {"name": "transface_b"},
    ("transface", "vit_b_dp005_mask_005"): {"name": "transface_b", "drop_path": 0.05, "mask_ratio": 0.05},
    ("transface", "vit_l_dp005_mask_005"): {"name": "transface_l"},
    **{("adaface", name): {"name": name} for name in ("ir_18", "ir_34", "ir_50", "ir_101", "ir_se_50")},
    **{
        ("contraface", f"iresnet{depth}_se{se}"): {"name": f"r{depth}", "se": se}
        for depth in (18, 34, 50, 100)
        for se in (False, True)
    },
}


def test_every_published_backbone_is_here(manifest):
    assert PUBLISHED.keys() == {(family, name) for family in manifest for name in manifest[family]}
    # Those whose own tests follow their publications.
    elsewhere = {
        name
        for name in model_names()
        if name.startswith(("edgeface_", "mobilefacenet")) or name.endswith(("kprpe", "unmasked"))
    }
    assert {options["name"] for options in PUBLISHED.values()} | {"vit_l"} == set(model_names()) - elsewhere


@pytest.mark.parametrize("family, backbone", PUBLISHED)
def test_names_shapes_and_parameters(manifest, family, backbone):
    published = manifest[family][backbone]
    with torch.device("meta"):
        model = create_model(**PUBLISHED[family, backbone])
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published["tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published["parameters"]


@pytest.mark.parametrize(
    "name",
    [
        *("r18", "mbf", "mbf_large", "vit_t", "transface_t"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("r34", "r50", "r100", "vit_s", "vit_b", "transface_s", "transface_b")
        ),
    ],
)
def test_embeddings_are_the_published_ones(shared, fill, name):
    expected = np.load(shared / "reference" / "backbones.npz")
    key = name.replace("transface", "transface_vit")
    model = create_model(name).eval()
    fill.fill_parameters(model)
    with torch.no_grad():
        close(model(fill.probe_images(2)), expected[key])
        if name.startswith("transface"):
            output = model.forward_patches(fill.probe_images(2))
            close(output.embeddings, expected[key])
            close(output.patch_weights, expected[f"{key}.patch_weight"])
            close(output.patch_std, expected[f"{key}.patch_std"])


def naive_ir(model, images, depths, channels=(64, 128, 256, 512)):
    """AdaFace's network written out from its state dict."""
    state = model.state_dict()

    def norm(x, name):
        affine = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], *affine)

    x = F.prelu(
        norm(F.conv2d(images, state["input_layer.0.weight"], padding=1), "input_layer.1"),
        state["input_layer.2.weight"],
    )
    index = 0
    for width, depth in zip(channels, depths):
        for block in range(depth):
            name, stride = f"body.{index}", 2 if block == 0 else 1
            if x.shape[1] == width:
                shortcut = x[:, :, ::stride, ::stride]
            else:
                shortcut = F.conv2d(x, state[f"{name}.shortcut_layer.0.weight"], stride=stride)
                shortcut = norm(shortcut, f"{name}.shortcut_layer.1")
            name += ".res_layer"
            y = norm(x, f"{name}.0")
            y = norm(F.conv2d(y, state[f"{name}.1.weight"], padding=1), f"{name}.2")
            y = F.prelu(y, state[f"{name}.3.weight"])
            y = norm(F.conv2d(y, state[f"{name}.4.weight"], padding=1, stride=stride), f"{name}.5")
            if f"{name}.se_block.fc1.weight" in state:
                gate = y.mean((2, 3), keepdim=True)
                gate = F.conv2d(
                    F.relu(F.conv2d(gate, state[f"{name}.se_block.fc1.weight"])), state[f"{name}.se_block.fc2.weight"]
                )
                y = y * torch.sigmoid(gate)
            x, index = shortcut + y, index + 1
    x = norm(x, "output_layer.0").flatten(1)
    return norm(F.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"]), "output_layer.4")


@pytest.mark.parametrize(("name", "depths"), [("ir_18", (2, 2, 2, 2)), ("ir_se_50", (3, 4, 14, 3))])
def test_adaface_against_its_formula(name, depths):
    model = with_statistics(create_model(name, input_size=32, embedding_size=16))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        close(model(images), naive_ir(model, images, depths), 1e-5)
        model.bgr = True
        close(model(images), naive_ir(model, images[:, [2, 1, 0]], depths), 1e-5)


def test_squeeze_excite_of_iresnet_gates_each_branch():
    torch.manual_seed(0)
    model = create_model("r18", input_size=16, embedding_size=8, se=True).eval()
    plain = create_model("r18", input_size=16, embedding_size=8).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "se_block" not in k})
    images = torch.rand(2, 3, 16, 16)
    for name, parameter in model.named_parameters():
        if "se_block.fc1" in name:
            nn.init.zeros_(parameter)  # every gate is a half
    with torch.no_grad():
        for name, module in plain.named_modules():
            if name.endswith("bn3"):
                module.weight.mul_(0.5)
                module.bias.mul_(0.5)
        close(model(images), plain(images), 1e-5)


SMALL = [
    partial(IResNet, (2, 1, 1, 1), 16, 27, se=True),
    partial(IResNet, (2, 1, 1, 1), 16, 27, pool="pair_relation"),
    partial(IR, (2, 1, 1, 1), 16, 27, dropout=0.0),
    partial(MobileFaceNet, (2, 1, 1, 1), 2, 16, 27, width=0.25),
    partial(VisionTransformer, 32, 4, 16, 27),
    partial(VisionTransformer, 32, 4, 16, 27, registers=4),
    partial(TransFace, 32, 4, 16, 27),
    partial(KeypointTransformer, 32, 4, 4, 3, 16, 27),
]
each_small = pytest.mark.parametrize("build", SMALL, ids=lambda build: "_".join([build.func.__name__, *build.keywords]))
IMAGES = torch.rand(4, 3, 27, 27, generator=torch.Generator().manual_seed(0)) * 2 - 1


@each_small
def test_checkpointing_changes_nothing(build):
    plain, checkpointed = build().train(), build(checkpoint_activations=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    outputs = []
    for model in (plain, checkpointed):
        torch.manual_seed(1)  # the same masks and dropped paths
        outputs.append(model(IMAGES))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (name, mine), theirs in zip(checkpointed.named_parameters(), plain.parameters()):
        if theirs.grad is not None:
            assert torch.equal(mine.grad, theirs.grad), name
    for (name, mine), theirs in zip(checkpointed.named_buffers(), plain.buffers()):
        assert torch.equal(mine, theirs), name


@each_small
def test_checkpointing_keeps_fewer_activations(build):
    kept = [activation_bytes(build(checkpoint_activations=switch).train(), IMAGES) for switch in (False, True)]
    assert kept[1] < 0.6 * kept[0]


@each_small
def test_every_trainable_parameter_gets_a_gradient(build):
    """Data-parallel training waits for every one of them."""
    transformer = issubclass(build.func, VisionTransformer)
    for options in ({}, {"mask_ratio": 0.0}) if transformer else ({},):
        model = build(**options).train()
        (model(IMAGES) * torch.rand(4, 16)).sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@each_small
def test_half_precision_stays_near(build):
    model = with_statistics(build())
    with torch.no_grad():
        exact = model(IMAGES)
        for dtype, bound in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
            with torch.autocast("cpu", dtype):
                close(model(IMAGES).float(), exact, bound)


@pytest.mark.parametrize("size", [56, 64, 112, 128])
@pytest.mark.parametrize("name", ["r18", "ir_18", "mbf", "vit_t", "transface_t"])
def test_the_head_fits_the_input(name, size):
    with torch.device("meta"):
        model = create_model(name, embedding_size=128, input_size=size)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 128)


def test_the_scale_of_iresnets_features_is_frozen():
    model = create_model("r18", input_size=16)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["features.weight"]
    assert (model.features.weight == 1).all()


def test_an_iresnet_of_eight_channels_can_be_trained():
    """In a process of its own, which PyTorch's convolution of these channels has ended on some processors."""
    script = (
        "import torch, models; f = torch.channels_last; torch.manual_seed(0)\n"
        "model = models.create_model('r18', width=0.125).to(memory_format=f)\n"
        "for _ in range(4): model(torch.rand(4, 3, 112, 112).to(memory_format=f)).square().mean().backward()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    narrow = projection(8, 12, 2)
    images = torch.rand(2, 8, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(narrow[0](images), F.conv2d(images, narrow[0].weight, stride=2))


def test_iresnets_head_may_follow_its_trunk_twice():
    model = create_model("r18", input_size=16, embedding_size=8, dropout=0.4)
    images = torch.rand(2, 3, 16, 16)
    model.eval()
    assert torch.equal(model.head(model.trunk(images)), model(images))
    model.train()
    trunk = model.trunk(images)
    assert not torch.equal(model.head(trunk), model.head(trunk))


@pytest.mark.parametrize(
    "name, scaled, kept",
    [
        (
            "mbf",
            [
                "layers.0.layers.0.weight",
                "layers.4.layers.1.layers.0.weight",
                "layers.7.layers.0.layers.2.layers.0.weight",
            ],
            "features.layers.2.weight",
        ),
        ("r18", ["conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.conv2.weight", "bn2.weight"], "fc.bias"),
    ],
)
def test_width_scales_the_channels(name, scaled, kept):
    def shapes(width):
        with torch.device("meta"):
            return {k: v.shape for k, v in create_model(name, width=width).state_dict().items()}

    half, whole = shapes(0.5), shapes(1)
    assert shapes(0.505) == half, "rounded to a multiple"
    for tensor in scaled:
        assert half[tensor][0] * 2 == whole[tensor][0]
    assert half[kept] == whole[kept]


@each_small
def test_no_autocast_region_and_no_cast_within(build):
    """Half-precision weights give half-precision embeddings: nothing inside insists on float32."""
    model = build().bfloat16().eval()
    seen = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with torch.no_grad():
        model(IMAGES.bfloat16())
    assert seen == {torch.bfloat16}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown backbone 'r51'; did you mean 'r50'"):
        create_model("r51")
    with pytest.raises(ValueError, match="unknown option of r18 'dropuot'; did you mean 'dropout'"):
        create_model("r18", dropuot=0.4)
    with pytest.raises(ValueError, match="unknown option of mbf 'dropout'"):
        create_model("mbf", dropout=0.4)
