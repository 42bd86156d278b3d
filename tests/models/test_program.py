"""Programs of torch.export give the embeddings of the networks they were made from, without this package."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from models import create_model
from models.iresnet import IResNet
from models.kprpe import KeypointTransformer
from models.mobilefacenet import MobileFaceNet
from models.program import export_program
from models.vit import VisionTransformer
from tests.models.test_export import trained

SMALL = {
    "iresnet": partial(IResNet, (2, 1, 1, 1), 16, 32, se=True, bgr=True, unit_range=True),
    "mbf": partial(MobileFaceNet, (1, 1, 1, 1), 2, 16, 32, width=0.25),
    "vit": partial(VisionTransformer, 32, 2, 16, 32, registers=4),
    "kprpe": partial(KeypointTransformer, 32, 2, 2, 2, 16, 32),
}
LOADED = """
import sys
import torch

images, *rest = torch.load(sys.argv[2])
torch.save(torch.export.load(sys.argv[1]).module()(images, *rest), sys.argv[3])
assert not {"models", "pipelines"} & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("name", SMALL)
def test_programs_give_any_number_of_embeddings(tmp_path, name):
    model = trained(SMALL[name])
    path = tmp_path / "model.pt2"
    assert export_program(model, path, 32) < 1e-5
    program = torch.export.load(path).module()
    for count in (1, 4):
        inputs = [torch.rand(count, 3, 32, 32) * 2 - 1]
        inputs += [torch.rand(count, 5, 2)] if name == "kprpe" else []
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_a_network_of_timm(tmp_path):
    pytest.importorskip("timm")
    model = trained(partial(create_model, "timm/mobilenetv3_small_050", embedding_size=16, input_size=32))
    assert export_program(model, tmp_path / "model.pt2", 32) < 1e-5


def test_a_program_needs_nothing_of_ours(tmp_path):
    model = trained(SMALL["iresnet"])
    path, given, found = (tmp_path / name for name in ("model.pt2", "images.pt", "embeddings.pt"))
    export_program(model, path, 32)
    images = torch.rand(2, 3, 32, 32)
    torch.save([images], given)
    subprocess.run([sys.executable, "-I", "-c", LOADED, path, given, found], cwd=tmp_path, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(found), model(images), rtol=1e-5, atol=1e-5)


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    model = trained(SMALL["mbf"])
    export = torch.export.export
    other = trained(SMALL["mbf"])
    torch.nn.init.normal_(next(other.parameters()))
    monkeypatch.setattr(torch.export, "export", lambda module, *rest, **named: export(other, *rest, **named))
    with pytest.raises(RuntimeError, match="differ from the network's"):
        export_program(model, tmp_path / "model.pt2", 32)
    assert list(tmp_path.iterdir()) == []
