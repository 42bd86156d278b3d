"""What backbones cost, against published counts and hand-made ones."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from models import create_model, inspect
from models.inspect import Speed, activation_bytes, cost, speed
from pipelines.common import command as entry
from tests.models.test_backbones import PUBLISHED

LARGE = {"r200", "r2060", "vit_h", "r100", "ir_101", "vit_b", "transface_b", "vit_l", "transface_l"}


@pytest.mark.parametrize(
    "family, backbone",
    [
        pytest.param(*key, marks=[pytest.mark.slow] if options["name"].split("_dp")[0] in LARGE else [])
        for key, options in PUBLISHED.items()
    ],
)
def test_cost_is_the_published_one(manifest, family, backbone):
    found = cost(**PUBLISHED[family, backbone])
    published = manifest[family][backbone]
    assert found.parameters == published["parameters"]
    assert found.gmac == pytest.approx(published["gmac"], abs=1e-4)


@pytest.mark.parametrize(
    "name, gmac, millions",
    [
        ("r18", 2.6, None),
        ("r50", 6.3, None),
        ("vit_t", 1.5, None),
        ("vit_s", 5.7, None),
        ("mbf", 0.45, None),
        ("mobilefacenet", 0.22, 0.99),
        pytest.param("r100", 12.1, 65.2, marks=pytest.mark.slow),
        pytest.param("vit_b", 11.4, None, marks=pytest.mark.slow),
        pytest.param("vit_l", 25.3, None, marks=pytest.mark.slow),
    ],
)
def test_cost_as_the_tables_of_others_have_it(name, gmac, millions):
    """Those of arcface_torch's README, and of MobileFaceNet's paper, whose embeddings have 128 numbers."""
    found = cost(name=name, **({"embedding_size": 128} if name == "mobilefacenet" else {}))
    assert found.gmac == pytest.approx(gmac, rel=0.03)
    assert millions is None or found.parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_multiply_adds_shrink_with_the_image():
    whole, half = cost(name="r18"), cost(name="r18", input_size=56)
    assert half.gmac == pytest.approx(whole.gmac * (4 / 7) ** 2, rel=0.35)
    assert half.gmac < whole.gmac / 3


def test_activations_of_a_network_that_can_be_counted_by_hand():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    images = torch.rand(3, 10)
    # the images, and the output of ReLU, which also is what the last layer needs
    assert activation_bytes(model, images) == 4 * (3 * 10 + 3 * 20)


def test_speed_is_measured_in_images(monkeypatch):
    now = 0.0

    class Slow(nn.Conv2d):
        """Takes 0.1 s forward and 0.3 s backward by the clock below."""

        def forward(self, images):
            nonlocal now
            now += 0.1
            output = super().forward(images)
            if output.requires_grad:
                output.register_hook(self.backward)
            return output

        def backward(self, gradient):
            nonlocal now
            now += 0.3

    monkeypatch.setattr("time.perf_counter", lambda: now)
    found = speed(Slow(3, 2, 1), 8, torch.device("cpu"), batch_size=4)
    assert found.forward == pytest.approx(40)
    assert found.training == pytest.approx(10)


def run_inspect(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(inspect, "speed", partial(speed, seconds=0.01))  # which it measures for seconds
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    entry.run(inspect.main)
    return capsys.readouterr().out


def test_table_of_all(monkeypatch, capsys):
    monkeypatch.setattr("models.inspect.model_names", lambda pattern: ["mbf", "r18"])
    table = run_inspect(monkeypatch, capsys)
    assert "24.03" in table
    assert "0.4375" in table


def test_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("models.inspect.model_names", lambda pattern="*": ["mbf", "r18"])
    mbf, r18 = json.loads(run_inspect(monkeypatch, capsys, "--json"))
    assert (mbf["backbone"], r18["backbone"]) == ("mbf", "r18")
    assert mbf["gmac"] == pytest.approx(0.4375, abs=1e-4) and r18["parameters"] / 1e6 == pytest.approx(24.03, abs=0.01)
    path = tmp_path / "x.pt"
    torch.save(create_model("mbf", width=0.25, input_size=32, embedding_size=16).state_dict(), path)
    (own,) = json.loads(run_inspect(monkeypatch, capsys, path, "--batch-size", 1, "--json"))
    assert own["options"]["width"] == 0.25 and own["images_per_second"]["forward"] > 0
    assert own["images_per_second"]["training"] is None  # which JSON has no NaN for


def test_a_file_and_a_wrong_name(tmp_path, monkeypatch, capsys):
    path, onnx = tmp_path / "x.pt", tmp_path / "x.ONNX"
    onnx.touch()
    torch.save(create_model("mbf", width=0.25, input_size=32, embedding_size=16).state_dict(), path)
    told = run_inspect(monkeypatch, capsys, path, "--batch-size", 4)
    assert "'width': 0.25" in told and "steps of 4 images" in told
    assert "–" in run_inspect(monkeypatch, capsys, path, "--batch-size", 1)
    for arguments, message in (((path, "--batch-size", 0), "0 is less than 1"), ((onnx,), "is an ONNX file")):
        with pytest.raises(SystemExit):
            run_inspect(monkeypatch, capsys, *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_inspect(monkeypatch, capsys, "mbff")
    assert "did you mean 'mbf'" in capsys.readouterr().err
    for missing in (tmp_path / "mbf", "mbf.pt"):
        with pytest.raises(SystemExit):
            run_inspect(monkeypatch, capsys, missing)
        assert f"there is no checkpoint {missing}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes more images at a time")
def test_the_cost_is_told_before_the_speed_is_measured(monkeypatch, capsys):
    def measured(model, input_size, device, batch_size):
        told = capsys.readouterr().out
        assert "24.03" in told and told.endswith("steps of 4 images:\n")
        return Speed(7.0, 3.0)

    monkeypatch.setattr(inspect, "speed", measured)
    monkeypatch.setattr(sys, "argv", ["inspect", "r18"])
    entry.run(inspect.main)
    assert capsys.readouterr().out == "forward 7.0, with backward 3.0\n"


@pytest.mark.parametrize("name", ["export", "inspect"])
def test_run_as_a_script_it_says_how_to_run_it(name):
    """As a script, its folder would come before the standard library, whose ``inspect`` it would shadow."""
    script = Path(__file__).resolve().parents[2] / f"models/{name}.py"
    done = subprocess.run([sys.executable, str(script), "r50"], capture_output=True, text=True, timeout=60)
    assert done.returncode and (done.stdout, done.stderr) == ("", f"error: run it as: python -m models.{name}\n")
