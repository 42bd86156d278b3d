"""Weights from every layout that users have."""

import argparse
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import create_model
from models.weights import load_backbone, load_weights, read_weights
from pipelines.common.errors import UserError
from tests.models.support import CENTRES, new, same, small


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


LAYOUTS = {
    "bare": lambda s: s,
    "DataParallel": lambda s: prefixed("module.", s),
    "DataParallel of a compiled model": lambda s: prefixed("module._orig_mod.", s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "state_dict of DataParallel": lambda s: {"state_dict": prefixed("module.", s)},
    "arcface_torch's checkpoint": lambda s: {
        "epoch": 1,
        "global_step": 7,
        "state_dict_backbone": s,
        "state_dict_softmax_fc": {"weight": CENTRES},
    },
    "TopoFR": lambda s: {**s, "weight": CENTRES},
    "GB-CosFace's whole model": lambda s: {**prefixed("module.backbone.", s), "module.head.weight": CENTRES},
    "AdaFace": lambda s: {"state_dict": {**prefixed("model.", s), "head.kernel": CENTRES.T, "head.t": torch.zeros(1)}},
    "MagFace": lambda s: {"state_dict": {**prefixed("features.module.", s), "fc.weight": CENTRES.T}},
    "PyTorch's tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": CENTRES[0]},
    "Xiaoccer": lambda s: {"epoch": 68, "net_state_dict": s},
    "net": lambda s: {"net": s, "acc": 0.9},
    "sections in a section": lambda s: {"models": {"encoder": prefixed("module.", s), "head": {"weight": CENTRES}}},
    "under any name": lambda s: {**prefixed("student_net.trunk.", s), "student_net.neck.weight": CENTRES},
    "beside a section": lambda s: {**s, "optimizer": {"momentum": {"conv1.weight": CENTRES}}},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(tmp_path, layout):
    model = small()
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "x.pt")
    fresh = new()
    if layout == "without counters":
        fresh.load_state_dict({k: v for k, v in model.state_dict().items() if k.endswith("tracked")}, strict=False)
    load_weights(fresh, tmp_path / "x.pt")
    assert same(fresh, model)


@pytest.mark.parametrize(
    ("family", "backbone", "layout", "options"),
    [
        ("arcface_torch", "r18", "bare", {"name": "r18"}),
        ("arcface_torch", "r34", "TopoFR", {"name": "r34"}),
        ("transface", "vit_t", "bare", {"name": "transface_t"}),
        ("contraface", "iresnet18_seTrue", "bare", {"name": "r18", "se": True}),
        ("adaface", "ir_18", "AdaFace", {"name": "ir_18"}),
    ],
)
def test_published_checkpoint(tmp_path, manifest, family, backbone, layout, options):
    entry = manifest[family][backbone]
    tensors = {name: torch.full(shape, 0.5, dtype=torch.half) for name, shape in entry["tensors"].items()}
    torch.save(LAYOUTS[layout](tensors), tmp_path / "x.pt")
    model, found = load_backbone(tmp_path / "x.pt")
    assert found == {"embedding_size": 512, "input_size": 112} | options
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    assert all((t == 0.5).all() for k, t in model.state_dict().items() if not k.endswith("tracked"))


def test_magface_was_trained_on_other_images(tmp_path):
    """BGR in [0, 1], as its gen_feat.py feeds; what it makes of RGB in [-1, 1] is told from the layout."""
    model = small("r18", width=0.25)
    torch.save(LAYOUTS["MagFace"](model.state_dict()), tmp_path / "magface.pth")
    loaded, options = load_backbone(tmp_path / "magface.pth")
    told = {"bgr": True, "unit_range": True}
    assert options == told | {"name": "r18", "width": 0.25, "embedding_size": 32, "input_size": 32}
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels * 2 - 1), model(pixels[:, [2, 1, 0]]))
    with pytest.warns(UserWarning, match="MagFace.*bgr=True, unit_range=True"):
        load_weights(new("r18", width=0.25), tmp_path / "magface.pth")
    assert not load_backbone(tmp_path / "magface.pth", bgr=False)[0].bgr


@pytest.mark.parametrize(("name", "told"), [("ir_18", {"bgr": True}), ("mbf", {}), ("vit_t", {})])
def test_of_lightnings_checkpoints_only_adafaces_network_took_bgr(tmp_path, name, told):
    """Lightning trains any network."""
    content = LAYOUTS["AdaFace"](small(name).state_dict()) | {"pytorch-lightning_version": "1.4.4"}
    torch.save(content, tmp_path / "x.ckpt")
    assert read_weights(tmp_path / "x.ckpt").options == told


def test_of_several_networks_one_is_named(tmp_path):
    """The largest, else the first; half a network or an optimiser's state is none."""
    model, other = small(), small("r18", width=0.25)
    content = {
        "model": model.state_dict(),
        "ema": small().state_dict(),
        "buffers": {"layers.0.layers.0.weight": CENTRES},
    }
    torch.save(content, tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=r"several networks \(model/, ema/\); model/ is read"):
        assert same(read_weights(tmp_path / "x.pt").tensors, model)
    torch.save({"student": model.state_dict(), "teacher": other.state_dict()}, tmp_path / "x.pt")
    largest = max((model, other), key=lambda network: len(network.state_dict()))
    with pytest.warns(UserWarning, match="several networks"):
        assert same(read_weights(tmp_path / "x.pt").tensors, largest)


@pytest.mark.parametrize(
    "names", [["checkpoint_gpu_0.pt", "checkpoint_gpu_1.pt"], ["pretrained_model/model.pt"], ["a.ckpt"], ["NET.ONNX"]]
)
def test_folders_of_others_say_which_file_could_be_meant(tmp_path, names):
    for name in ("notes.txt", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match="name the file that you mean: .*" + ".*".join(names)) as caught:
        read_weights(tmp_path)
    assert "training" not in str(caught.value) and "notes" not in str(caught.value)


def test_hugging_faces_older_file_name(tmp_path):
    model = small()
    torch.save(prefixed("model.net.", model.state_dict()), tmp_path / "pytorch_model.bin")
    assert same(load_backbone(tmp_path)[0], model)


@pytest.mark.filterwarnings("ignore")
def test_files_of_other_kinds_are_named_as_what_they_are(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "net.ONNX").touch()
    with pytest.raises(ValueError, match="TorchScript.*state_dict") as caught:
        read_weights(tmp_path / "script.pt")
    assert "weights_only" not in str(caught.value)
    with pytest.raises(ValueError, match="net.ONNX is an ONNX file"):
        read_weights(tmp_path / "net.ONNX")
    torch.save({"net_state_dict": nn.Conv2d(3, 2, 1).state_dict()}, tmp_path / "conv.ckpt")
    with pytest.raises(ValueError, match="no backbone that is known here: net_state_dict/weight, net_state_dict/bias"):
        read_weights(tmp_path / "conv.ckpt")


def test_half_precision_weights_arrive_in_single(tmp_path):
    model = small()
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, tmp_path / "x.pt")
    fresh = new()
    load_weights(fresh, tmp_path / "x.pt")
    weight = fresh.conv_sep.layers[0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.conv_sep.layers[0].weight.half().float())


def test_safetensors(tmp_path):
    model = small()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    assert same(read_weights(tmp_path / "x.safetensors").tensors, model)
    (tmp_path / "bad.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        read_weights(tmp_path / "bad.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_sharded_checkpoint(checkpoint):
    folder, model = checkpoint
    loaded, options = load_backbone(folder)
    assert same(loaded, model)
    assert options == {"name": "mbf", "width": 0.25, "embedding_size": 32, "input_size": 32}


@pytest.mark.filterwarnings("ignore:torch.distributed")
def test_run_folder(checkpoint):
    folder, model = checkpoint
    run = folder.parents[1]
    torch.save(model.state_dict(), run / "model.pt")
    for path in (run, run / "model.pt"):
        assert same(load_backbone(path)[0], model)
    (run / "model.pt").unlink()
    (folder / "meta.json").touch()
    for later in ("step_000000004", "step_000000005.partial", "step_000000006.damaged"):
        (folder.parent / later).mkdir()
    (folder.parent / "step_000000006.damaged" / "meta.json").touch()
    with pytest.raises(FileNotFoundError, match=f"training finished.* Its newest checkpoint is {folder}$"):
        load_backbone(run)


@pytest.mark.parametrize(
    "text",
    [
        "model: resnet",
        "name: [unclosed",
        "[" * 3000,
        "a: !!int ''",
        "a: 2024-99-99",
        "- a list",
        '{"name": "of another project"}',
        "",
    ],
)
def test_configs_of_other_projects_are_passed_over(tmp_path, text):
    model = small()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for name in ("config.yaml", "config.json"):
        (tmp_path / name).write_text(text)
    assert same(load_backbone(tmp_path / "model.pt")[0], model)


@pytest.mark.parametrize("value", ["embedding_size: -1", "width: 1e308", "input_size: [112]", "embedding_size: many"])
def test_values_that_no_network_has_are_one_line(tmp_path, value):
    torch.save(small().state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text(f"model: {{name: r18, {value}}}")
    with pytest.raises(UserError, match=f"model.pt: (there is no network of name: )?r18.*{value[:4]}"):
        load_backbone(tmp_path / "model.pt")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_changed_bit_is_noticed(tmp_path, compressed):
    """PyTorch reads on: most places in a file of weights are weights."""
    model, path, random = small(width=0.125), tmp_path / "x.pt", np.random.default_rng(1)
    torch.save(model.state_dict(), path)
    if compressed:  # as other programs may write
        with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "y", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in stored.infolist():
                packed.writestr(entry.filename, stored.read(entry))
        (tmp_path / "y").replace(path)
    sound, said = path.read_bytes(), Counter()
    for place in random.integers(0, len(sound), 60):
        data = bytearray(sound)
        data[place] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            assert same(read_weights(path).tensors, model), "a changed weight"
        except UserError as error:
            said[str(error).endswith("has changed since it was written; copy it again")] += 1
    assert said[True] > 20


def test_files_without_checksums_are_read(tmp_path):
    model = small()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert all(same(read_weights(tmp_path / name).tensors, model) for name in ("x.pt", "old.pt"))


def test_scores_and_command_lines_beside_the_weights(tmp_path):
    model = small()
    content = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "curve": np.arange(3.0)}
    torch.save({"state_dict": model.state_dict(), **content}, tmp_path / "x.pt")
    assert same(read_weights(tmp_path / "x.pt").tensors, model)


def test_mismatch_names_what_is_wrong(tmp_path):
    tensors = small().state_dict()
    tensors["extra.weight"] = tensors.pop("conv_sep.layers.0.weight")
    tensors["features.layers.2.weight"] = tensors["features.layers.2.weight"][:, :100]
    torch.save(tensors, tmp_path / "x.pt")
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(model, tmp_path / "x.pt")
    text = str(caught.value)
    assert "1 missing: conv_sep.layers.0.weight" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: features.layers.2.weight (32, 100) for (32, 512)" in text
    assert same(model, before), "half loaded"
    with pytest.raises(ValueError, match=r"\d\d+ missing: .*, \.\.\."):
        load_weights(new("r18"), tmp_path / "x.pt")


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("import torch  # a script")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    (tmp_path / "folder").mkdir()
    for name in ("empty.pt", "text.pt", "epoch.pt", "tensor.pt", "linear.pt", "folder"):
        with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
            load_backbone(tmp_path / name)
        assert "run code" not in str(caught.value)


def test_a_given_name_wins_over_the_guess(tmp_path):
    with torch.device("meta"):
        shapes = {
            name: t.shape for name, t in create_model("vit_t", embedding_size=8, input_size=26).state_dict().items()
        }
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.pt")
    model, options = load_backbone(tmp_path / "x.pt", name="vit_t_dp005_mask0")
    assert options == {"name": "vit_t_dp005_mask0", "embedding_size": 8, "input_size": 26}
    assert model.mask_ratio == 0
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone(tmp_path / "x.pt", name="transface_t")


def test_a_backbone_of_ones_own_takes_its_weights_back(tmp_path):
    """Whatever its tensors are called, in whatever section they stand."""
    own = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for content in (own.state_dict(), {"state_dict": {f"module.{k}": v for k, v in own.state_dict().items()}}):
        torch.save(content, tmp_path / "own.pt")
        other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        load_weights(other, tmp_path / "own.pt")
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), other.state_dict().values()))
