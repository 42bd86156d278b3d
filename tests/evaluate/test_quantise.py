"""An ONNX file in 8 bits is written where its embeddings are as good, and nothing where they are not."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate import quantise
from models import create_model
from models.onnx_file import export_onnx
from pipelines.common import command
from pipelines.sources.bins import read_bin, write_bin
from tests.models.test_export import trained
from tests.pipelines.photos import jpeg

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """``model.onnx`` of a small network, one image at a time, and ``lfw.bin`` of 20 pairs."""
    folder = tmp_path_factory.mktemp("quantise")
    model = trained(partial(create_model, "mbf", width=0.25, embedding_size=32, input_size=32))
    export_onnx(model, folder / "model.onnx", 32)
    pairs = read_bin(shared / "faces" / "lfw.bin")
    write_bin(folder / "lfw.bin", pairs.encoded[:40], pairs.same[:20])
    return folder


def run(monkeypatch, folder, *options):
    words = ["model.onnx", "--calibrate", "lfw.bin", "--bins", "lfw.bin", "--output", "small.onnx", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quantise", *words, *map(str, options)])
    monkeypatch.chdir(folder)
    command.run(quantise.main)


def test_what_is_written_is_in_8_bits_and_near(folder, monkeypatch, capsys):
    others = "\n## In 8 bits: other.onnx\n\nits table\n\n## Licence\n\nits text\n"
    (folder / "README.md").write_text(f"# a card\n\n## In 8 bits: small.onnx\n\nan old table\n{others}")
    monkeypatch.setattr(quantise, "MOST_DROP", 1)  # of 20 pairs each is 5 points
    monkeypatch.setattr(quantise, "LEAST_COSINE", 0.9)
    for _ in range(2):
        run(monkeypatch, folder, "--card", "README.md")
    graph = onnx.load(folder / "small.onnx").graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    of_colours = [tensor for tensor in weights if tensor.dims[1] == 3]  # the first convolution stays as it is
    assert [tensor.data_type for tensor in of_colours] == [onnx.TensorProto.FLOAT]
    weights = [tensor for tensor in weights if tensor.dims[1] != 3]
    assert weights and {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert graph.input[0].name == "data"
    scales = [
        tensor for tensor in graph.initializer if tensor.name == f"{weights[0].name.removesuffix('_quantized')}_scale"
    ]
    assert [list(scale.dims) for scale in scales] == [[weights[0].dims[0]]]  # a scale a channel
    card = (folder / "README.md").read_text()
    assert card.startswith(f"# a card\n{others}\n## In 8 bits: small.onnx") and card.count("| lfw.bin |") == 1
    (folder / "small.onnx").unlink()


def test_a_folder_in_the_place_of_the_file_is_told_before_the_work(folder, monkeypatch, capsys):
    (folder / "small.onnx").mkdir()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, folder)
    said = capsys.readouterr()
    assert end.value.code == 2 and "small.onnx" in said.err and "float32" not in said.out
    (folder / "small.onnx").rmdir()


@pytest.mark.parametrize(("name", "value"), [("MOST_DROP", -1.1), ("LEAST_COSINE", 1.1)])
def test_the_gate(folder, monkeypatch, capsys, name, value):
    before = sorted(path.name for path in folder.iterdir())
    for limit, free in (("MOST_DROP", 1), ("LEAST_COSINE", -1), (name, value)):
        monkeypatch.setattr(quantise, limit, free)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, folder)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "nothing is written" in error
    assert sorted(path.name for path in folder.iterdir()) == before
    run(monkeypatch, folder, "--force")
    assert "written by --force" in capsys.readouterr().out
    assert (folder / "small.onnx").exists()
    (folder / "small.onnx").unlink()


@pytest.mark.parametrize(
    ("now", "cosine", "faults"), [(0.958, 0.99, 0), (0.9575, 0.99, 1), (0.97, 0.9899, 1), (0.9, np.nan, 2)]
)
def test_the_limits(now, cosine, faults):
    assert len(quantise.Comparison(0.96, now, cosine).faults("lfw")) == faults


def test_cosines_are_of_sums_of_views():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 2, 8))
    expected = torch.cosine_similarity(torch.from_numpy(a.sum(1)), torch.from_numpy(b.sum(1))).numpy()
    np.testing.assert_allclose(quantise.cosines(a, b), expected)


def test_a_file_in_half_precision_is_refused(folder, monkeypatch, capsys, tmp_path):
    model = trained(partial(create_model, "mbf", width=0.25, embedding_size=32, input_size=32))
    export_onnx(model, tmp_path / "half.onnx", 32, fp16=True)
    words = ["--calibrate", "lfw.bin", "--bins", "lfw.bin", "--output", "small.onnx"]
    monkeypatch.setattr(sys, "argv", ["quantise", str(tmp_path / "half.onnx"), *words])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        command.run(quantise.main)
    assert "is not in float32" in capsys.readouterr().err


def test_calibration_fills_the_networks_batches(tmp_path):
    """Of 35 images three batches of 10; what does not fill one is left."""
    write_bin(tmp_path / "x.bin", [jpeg(seed, 32) for seed in range(40)], np.ones(20, bool))
    args = SimpleNamespace(calibrate=tmp_path / "x.bin", images=35, threads=1)
    assert [len(images) for images, *_ in quantise._calibration(args, 32, 10)] == [10, 10, 10, 5]
    assert [len(images) for images, *_ in quantise._calibration(args, 32, 1)] == [16, 16, 3]


def test_a_network_that_takes_many_images_at_a_time(folder, monkeypatch, capsys, tmp_path):
    """More than the batches of calibration would otherwise have; of fewer images nothing could be learnt."""
    model = trained(partial(create_model, "mbf", width=0.25, embedding_size=32, input_size=32))
    export_onnx(model, tmp_path / "any.onnx", 32, dynamic_batch=True)
    graph = onnx.load(tmp_path / "any.onnx")
    for values in (graph.graph.input, graph.graph.output):
        values[0].type.tensor_type.shape.dim[0].dim_value = 18
    onnx.save(graph, tmp_path / "many.onnx")
    words = ["--calibrate", "lfw.bin", "--bins", "lfw.bin", "--output", str(tmp_path / "small.onnx"), "--force"]
    monkeypatch.chdir(folder)
    for images, ends in ((17, 2), (18, 0)):
        monkeypatch.setattr(sys, "argv", ["quantise", str(tmp_path / "many.onnx"), *words, "--images", str(images)])
        try:
            command.run(quantise.main)
            code = 0
        except SystemExit as end:
            code = end.code
        error = capsys.readouterr().err
        assert code == ends and (tmp_path / "small.onnx").exists() == (not ends)
        assert ("17 images, but the network takes 18 at a time" in error) == bool(ends)
