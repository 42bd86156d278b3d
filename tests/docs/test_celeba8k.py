"""The script of docs/celeba8k.md, as it stands, on a small data set and with smaller networks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from models.onnx_file import export_onnx
from models.pretrained import from_pretrained
from pipelines.loading.loader import read_once
from pipelines.sources import open_source
from tests.docs.blocks import ROOT

SCRIPT = re.search(r"^```bash\n(.*?)^```$", (ROOT / "docs/celeba8k.md").read_text(), re.MULTILINE | re.DOTALL)
SIDE = 32
CONFIGS = ("celeba8k_cpu", "celeba8k_cpu_stage2", "celeba8k_cpu_distill")


@pytest.fixture
def folder(tmp_path):
    """The program, the configs with smaller networks and one epoch, and ``faces`` as the page describes it."""
    (tmp_path / "train").symlink_to(ROOT / "train")
    (tmp_path / "configs").mkdir()
    for name in CONFIGS:
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        config["data"]["batch_size"] = 8
        config["model"] |= {"width": 0.125, "input_size": 32, "embedding_size": 16, "compile": False}
        config["schedule"] |= {"epochs": 1, "warmup_epochs": 0}
        (tmp_path / f"configs/{name}.yaml").write_text(yaml.safe_dump(config))

    faces = tmp_path / "faces"
    call(tmp_path, "python -m pipelines.synthetic drawn --identities 40 --images-per-identity 6 --held-out 20")
    call(tmp_path, "python -m pipelines.prepare convert drawn faces/celeba8k --to webdataset")
    shutil.copy(tmp_path / "drawn/heldout.bin", faces / "lfw.bin")
    shutil.copy(tmp_path / "drawn/heldout.bin", faces / "cfp_fp.bin")
    write_folder(tmp_path / "drawn", faces / "celeba297", range(12))
    export_onnx(Teacher(tmp_path / "drawn"), faces / "teacher.onnx", SIDE)
    return tmp_path


class Teacher(nn.Module):
    """Small images less their mean, projected at random: to a network without training all faces are one person's."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        source = open_source(data)
        batches = read_once(source, np.arange(len(source)), batch_size=64, image_size=SIDE, threads=1)
        mean = torch.cat([batch.images for batch in batches]).mean(0)
        self.register_buffer("mean", nn.functional.avg_pool2d(mean, 4))
        self.project = nn.Linear(self.mean.numel(), 32, bias=False)
        nn.init.orthogonal_(self.project.weight, generator=torch.Generator().manual_seed(0))
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project((nn.functional.avg_pool2d(images, 4) - self.mean).flatten(1))


def write_folder(data: Path, folder: Path, indices: range) -> None:
    """Some images of a data set as ``identity/*.jpg``."""
    for index, (content, label) in enumerate(zip(*open_source(data).read(np.array(indices)))):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / str(label) / f"{index}.jpg").write_bytes(content.tobytes())


def call(folder: Path, script: str, **variables: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, **variables}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_the_script_runs_from_shards_to_report(folder):
    assert SCRIPT
    call(folder, SCRIPT[1], FACES=str(folder / "faces"))
    page = (folder / "report/index.html").read_text()
    assert all(name in page for name in (*CONFIGS, "teacher", "lfw", "cfp_fp"))
    for name in CONFIGS:
        assert (folder / f"runs/{name}/model.pt").is_file()
    model = from_pretrained(folder / "exported/faces")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 16)
    assert "lfw" in (folder / "exported/faces/README.md").read_text()
    assert (folder / "exported/faces.onnx").is_file()
