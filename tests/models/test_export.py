"""Exported models give the embeddings of the ones they were made from."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import nn

from models import create_model, export
from models.folding import fold_batch_norms
from models.ir import IR
from models.iresnet import IResNet
from models.mobilefacenet import MobileFaceNet
from models.onnx_file import export_onnx, onnx_error
from models.pretrained import from_pretrained, model_card, save_pretrained
from models.vit import TransFace, VisionTransformer
from pipelines.common import command as entry

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SMALL = [
    partial(IResNet, (2, 1, 1, 1), 16, 32, se=True, bgr=True, unit_range=True),
    partial(IR, (2, 1, 1, 1), 16, 32, bgr=True),
    partial(MobileFaceNet, (1, 1, 1, 1), 2, 16, 32, width=0.25),
    partial(VisionTransformer, 32, 2, 16, 32, registers=4),
    partial(TransFace, 32, 2, 16, 32),
]
each_small = pytest.mark.parametrize("build", SMALL, ids=lambda build: build.func.__name__)


def trained(build):
    """A model whose batch norms are not the identity and whose maps keep their magnitude."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


def faces(shared, size, count=8):
    """The first faces of LFW, (count, 3, size, size) in [-1, 1]."""
    cv2 = pytest.importorskip("cv2")
    from pipelines.sources.bins import read_bin

    encoded = read_bin(shared / "faces" / "lfw.bin").encoded[:count]
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for data in encoded]
    pixels = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in pixels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@each_small
def test_onnx_equals_torch_on_random_and_real_images(tmp_path, shared, build):
    model = trained(build)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, 32, dynamic_batch=True) < 1e-4
    for images in (faces(shared, 32), torch.rand(1, 3, 32, 32), torch.randn(5, 3, 32, 32)):
        assert onnx_error(model, path, images) < 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@each_small
def test_half_precision_onnx(tmp_path, shared, build):
    model = trained(build)
    path = tmp_path / "half.onnx"
    export_onnx(model, path, 32, fp16=True, dynamic_batch=True)
    assert 1e-5 < onnx_error(model, path, faces(shared, 32)) < 1e-2
    graph = onnx.load(path).graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_graph_is_what_insightface_reads(tmp_path):
    model = trained(partial(create_model, "mbf", width=0.25))
    export_onnx(model, tmp_path / "fixed.onnx")
    export_onnx(model, tmp_path / "dynamic.onnx", dynamic_batch=True)
    for name, batch in (("fixed", 1), ("dynamic", "batch")):
        loaded = onnx.load(tmp_path / f"{name}.onnx")
        onnx.checker.check_model(loaded)
        graph = loaded.graph
        shape = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
        assert (graph.input[0].name, shape) == ("data", [batch, 3, 112, 112])
        assert len(graph.output) == 1
        assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == 512
        assert "BatchNormalization" not in {node.op_type for node in graph.node}
        # InsightFace takes such first nodes to mean that the graph normalises pixels of 0...255 itself.
        assert not any(node.name.startswith(("Sub", "Mul", "_minus", "_mul")) for node in graph.node[:8])


@each_small
def test_folding_leaves_only_batch_norms_in_front_of_something(build):
    model = trained(build).double()  # in which nothing but a mistake is seen
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = model(images)
        fold_batch_norms(model, images)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    left = {name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    expected_left = {
        IResNet: {"bn2", *(f"layer{i}.{j}.bn1" for i, j in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0)))},
        IR: {"output_layer.0", *(f"body.{i}.res_layer.0" for i in range(5))},
    }
    assert left == expected_left.get(build.func, set())


@pytest.mark.parametrize("build", SMALL[:3], ids=lambda build: build.func.__name__)  # OpenCV 4 reads no ViT
def test_opencv_reads_the_file(tmp_path, build):
    cv2 = pytest.importorskip("cv2")
    model = trained(build)
    export_onnx(model, tmp_path / "model.onnx", 32)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "model.onnx"))
    network.setInput(images.numpy())
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.linalg.norm(network.forward() - expected) < 1e-4 * np.linalg.norm(expected)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    options = {"name": "mbf", "embedding_size": 16, "input_size": 32, "width": 0.25}
    for value, name in ((np.nan, "features.layers.2.weight"), (np.inf, "conv_sep.layers.1.running_var")):
        model = trained(partial(create_model, **options))
        model.state_dict()[name].view(-1)[3] = value
        with pytest.raises(ValueError, match=f"not finite: {name}"):
            export_onnx(model, tmp_path / "sub" / "model.onnx", 32)
        with pytest.raises(ValueError, match=f"not finite: {name}"):
            save_pretrained(model, options, tmp_path / "hub", model_card(options))
        assert list(tmp_path.iterdir()) == []


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    model = trained(SMALL[2])
    with torch.no_grad():
        model.features.layers[2].weight.mul_(1e6)  # beyond float16
    export_onnx(model, tmp_path / "single.onnx", 32)
    with pytest.raises(ValueError, match="not finite; do without --fp16"):
        export_onnx(model, tmp_path / "half.onnx", 32, fp16=True)
    assert [file.name for file in tmp_path.iterdir()] == ["single.onnx"]


def test_a_wrong_graph_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "models.onnx_file.fold_batch_norms", lambda model, images: model.conv_sep.layers[1].reset_running_stats()
    )
    with pytest.raises(RuntimeError, match="onnxruntime's embeddings differ from the network's"):
        export_onnx(trained(SMALL[2]), tmp_path / "model.onnx", 32)
    assert list(tmp_path.iterdir()) == []


def run_export(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    entry.run(export.main)


@pytest.fixture
def trained_run(tmp_path):
    """The folder of a finished run."""
    model = trained(partial(create_model, "mbf", width=0.25, embedding_size=16, input_size=30))
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    config = {
        "data": {"train": "data/faces"},
        "model": {"name": "mbf", "width": 0.25, "embedding_size": 16, "input_size": 30, "compile": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, model


def test_command_writes_onnx(trained_run, monkeypatch, capsys):
    folder, model = trained_run
    target = folder / "out" / "MODEL.ONNX"
    run_export(monkeypatch, "--checkpoint", folder, "--output", target, "--dynamic-batch")
    assert "mbf" in capsys.readouterr().out
    assert onnx_error(model, target, torch.rand(2, 3, 30, 30)) < 1e-4


def test_command_writes_a_program(trained_run, monkeypatch, capsys):
    folder, model = trained_run
    run_export(monkeypatch, "--checkpoint", folder, "--output", folder / "model.pt2")
    assert "mbf" in capsys.readouterr().out
    images = torch.rand(2, 3, 30, 30)
    torch.testing.assert_close(torch.export.load(folder / "model.pt2").module()(images), model(images))


def test_command_writes_nothing_of_a_network_that_diverged(trained_run, monkeypatch, tmp_path, capsys):
    folder, model = trained_run
    torch.save(model.state_dict() | {"features.layers.2.weight": torch.full((16, 512), np.nan)}, folder / "model.pt")
    for target in (tmp_path / "new" / "M.ONNX", tmp_path / "hub"):
        with pytest.raises(SystemExit):
            run_export(monkeypatch, "--checkpoint", folder, "--output", target)
        assert "features.layers.2.weight" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_command_writes_huggingfaces_layout(trained_run, monkeypatch, tmp_path):
    folder, model = trained_run
    figures = {"pairs": 6000, "accuracy": 0.98765, "std": 0.0012, "interval": {"accuracy": [0.981, 0.991]}}
    results = {"sets": {"lfw": figures, "cfp_fp": {"pairs": 7000, "accuracy": 0.9, "std": 0.01}}}
    shared = [{"first": "a", "second": "b", "cosine": 0.8}] * 3
    (tmp_path / "overlap.json").write_text(json.dumps({"threshold": 0.55, "shared": shared}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    target = tmp_path / "hub"
    extras = ("--results", tmp_path / "results.json", "--overlap", tmp_path / "overlap.json", "--licence", "mit")
    run_export(monkeypatch, "--checkpoint", folder, "--output", target, *extras)
    assert sorted(file.name for file in target.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = from_pretrained(target)
    images = torch.rand(2, 3, 30, 30)
    assert not again.training
    assert torch.equal(again(images), model(images))
    card = (target / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "facemill"
    assert "data/faces" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "| lfw | 6000 | 98.77 ± 0.12 | 98.10 to 99.10 |" in card
    assert "| cfp_fp | 7000 | 90.00 ± 1.00 |  |" in card
    assert "a cosine of 0.55 or more to one of the test set's: 3." in card
    assert "## Intended use and limits" in card
    assert "width: 0.25" in card


@pytest.mark.filterwarnings("ignore:torch.distributed")
def test_card_names_the_data_of_this_run_only(trained_run, monkeypatch, tmp_path):
    folder, model = trained_run
    sharded = folder / "checkpoints" / "step_000000003"
    dcp.save({"backbone": model.state_dict()}, checkpoint_id=sharded, no_dist=True)
    run_export(monkeypatch, "--checkpoint", sharded, "--output", tmp_path / "hub")
    assert "data/faces" in (tmp_path / "hub" / "README.md").read_text()
    for i, foreign in enumerate(("data: [a, b]\nmodel: resnet", "- a list", "name: [unclosed", "model: {}\ndata:")):
        (folder / "config.yaml").write_text(foreign)
        torch.save(create_model("mbf", width=0.25, embedding_size=16).state_dict(), folder / "model.pt")
        run_export(monkeypatch, "--checkpoint", folder / "model.pt", "--output", tmp_path / str(i))
        assert "## Data" not in (tmp_path / str(i) / "README.md").read_text()


def test_pretrained_folder_keeps_options(tmp_path):
    options = {"name": "ir_18", "embedding_size": 8, "input_size": 16, "bgr": True}
    model = trained(partial(create_model, **options))
    save_pretrained(model, options, tmp_path, model_card(options))
    again = from_pretrained(tmp_path)
    assert again.bgr
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "folder", "--fp16"), "are for ONNX"),
        (("--output", "model.onnx", "--results", "results.json"), "name of a folder"),
        (("--output", "model.safetensors"), "name of a folder"),
        (("--output", "M.ONNX", "--results", "results.json"), "name of a folder"),
        (("--output", "model.pt2", "--overlap", "overlap.json"), "name of a folder"),
        (("--output", "model.pt2", "--fp16"), "are for ONNX"),
        (("--output", "folder", "--results", __file__), "is not what evaluate.verification wrote"),
        (("--output", __file__), "is a file: give --output the name of a folder"),
        (("--output", f"{__file__}/model.onnx"), "Not a directory"),
        (("--output", "model.onnx", "--network", "r18"), "does not fit"),
        (("--output", "model.onnx", "--network", "r19"), "did you mean 'r18'"),
    ],
)
def test_mistakes_are_one_line(trained_run, monkeypatch, capsys, arguments, message):
    folder, _ = trained_run
    with pytest.raises(SystemExit) as caught:
        run_export(monkeypatch, "--checkpoint", folder, *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_file_where_a_folder_lies(trained_run, monkeypatch, capsys, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(SystemExit):
        run_export(monkeypatch, "--checkpoint", trained_run[0], "--output", tmp_path / "model.onnx")
    assert "is a folder: give --output the name of a file" in capsys.readouterr().err
