"""Every Python block of README.md and of the pages for users runs as it stands, where the files are that it names."""

import io
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models import create_model
from models.onnx_file import export_onnx
from pipelines.sources.bins import write_bin
from pipelines.sources.recordio_writer import write_dataset
from tests.docs.blocks import ROOT, blocks
from train.state import save_weights

PAGES = [ROOT / "README.md", ROOT / "docs/python.md", ROOT / "docs/export.md"]
BLOCKS = [block for page in PAGES for block in blocks(page)]


def jpeg(seed):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run ``runs/a``, ``model.onnx``, ``face.jpg``, ``train.rec`` of 300 images of 3 people, ``lfw.bin``."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = {"name": "mbf", "embedding_size": 64, "input_size": 112, "width": 0.125}
    run = folder / "runs/a"
    run.mkdir(parents=True)
    save_weights(create_model(**model), run / "model.pt")
    export_onnx(create_model(**model).eval(), folder / "model.onnx", 112)
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"train": "train.rec"}}))
    images = [jpeg(seed) for seed in range(12)]
    (folder / "face.jpg").write_bytes(images[0])
    write_dataset(folder, [images[4 * identity : 4 * identity + 4] * 25 for identity in range(3)])
    write_bin(folder / "lfw.bin", images * 5, np.arange(30) % 2 == 0)
    return folder


@pytest.fixture
def files(made, tmp_path, monkeypatch):
    """What is made, in a folder for one block."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.file.stem}:{block.line}")
def test_a_block_runs(files, block):
    block.run({"__name__": "readme"})
