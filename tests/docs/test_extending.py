"""Every block of docs/extending.md runs, and what it adds does what is said of it."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from evaluate import report
from evaluate.features.network import load_network
from losses import MARGINS, PartialFC, create_margin
from models.registry import BACKBONES
from pipelines.loading.augment import AUGMENTATIONS
from pipelines.loading.loader import Batch
from pipelines.sources import READERS
from tests.command import called
from tests.docs.blocks import ROOT, blocks
from tests.evaluate.networks import write_onnx
from train import console
from train.recipes import RECIPES

PAGE = ROOT / "docs/extending.md"
BLOCKS = blocks(PAGE)
SCRIPT = "In a run"
SECTIONS = [section for section in dict.fromkeys(block.section for block in BLOCKS) if section != SCRIPT]


@pytest.fixture(autouse=True)
def own_tables():
    """The tables as they were, after each test."""
    needed = [block.needed for block in BLOCKS]
    tables = [AUGMENTATIONS, BACKBONES, MARGINS, READERS, RECIPES, *(table for table in needed if table is not None)]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)


def jpeg(seed, side=56):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Runs the blocks of a section whose needs are met, in one namespace and a folder with what they read."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("faces.zip", "w") as archive:
        for image in range(12):
            archive.writestr(f"identity{image % 3}/{image}.jpg", jpeg(image))
        archive.writestr("read.me", "no image")

    def run(section):
        namespace = {"__name__": "page"}
        for block in BLOCKS:
            if block.section == section and block.runnable:
                block.run(namespace)
        return namespace

    return run


@pytest.mark.parametrize("section", SECTIONS)
def test_every_block_runs(page, section):
    assert page(section)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs], ids=lambda block: block.needs)
def test_nothing_that_a_block_needs_is_missing(block):
    assert block.runnable, f"{PAGE.name}, line {block.line}: there is no {block.needs}"


def test_a_margin_trains_what_its_formula_says(page):
    """Its gradient to the embeddings, which the page does not look at, and a label of -1."""
    page("A margin")
    head = PartialFC(create_margin("fading_cosface", s=8, m=0.5), 6, 20, tile=7)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([3, 0, 19, 4, -1, 7, 7, 12, 1])
    head(x, labels).loss.backward()

    z = x.detach().double().requires_grad_()
    cos = torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(head.weight.detach().double()).T
    rows = []
    for row, y in zip(cos, labels.tolist()):
        if y >= 0:
            logits = 8 * row
            logits = torch.cat([logits[:y], 8 * (row[y] - 0.25 * (1 + row[y]))[None], logits[y + 1 :]])
            rows.append(logits.logsumexp(0) - logits[y])
    torch.stack(rows).mean().backward()
    torch.testing.assert_close(x.grad.double(), z.grad, rtol=1e-4, atol=1e-6)
    assert not x.grad[4].any()


def test_a_damaged_image_of_the_new_format_is_named(page, tmp_path):
    source_type = page("An input format")["ZipSource"]
    content = bytearray((tmp_path / "faces.zip").read_bytes())
    middle = content.find(jpeg(5)) + 900  # images are stored, not deflated: the checksum tells
    content[middle] ^= 255
    (tmp_path / "damaged.zip").write_bytes(content)
    source = source_type("damaged.zip")
    assert source.num_classes == 3 and len(source) == 12
    bad = [source.describe(i) for i in range(12) if _fails(source, i)]
    assert bad == ["damaged.zip, identity2/5.jpg, label 2"]


def _fails(source, index):
    try:
        source.read(np.array([index]))
    except ValueError as error:
        assert str(error).startswith(source.describe(index))
        return True
    return False


def test_the_protocol_gives_known_figures(page):
    rate = page("An evaluation protocol")["equal_error_rate"]
    same = np.array([True, True, False, False])
    assert rate(np.array([0.1, 0.2, 0.3, 0.4]), same) == 0
    assert rate(np.array([0.3, 0.4, 0.1, 0.2]), same) == 1
    assert rate(np.array([0.1, 0.3, 0.2, 0.4]), same) == 0.5
    wide = np.random.default_rng(1).normal(np.where(np.arange(100_000) % 4 == 0, 0, 3))
    assert abs(rate(wide, np.arange(100_000) % 4 == 0) - NormalDist().cdf(-1.5)) < 0.005


def test_the_protocols_command_writes_what_a_report_shows(tmp_path, monkeypatch):
    """A file of the page's two blocks, on pairs whose distances a second implementation knows; two models of it."""
    section = [block for block in BLOCKS if block.section == "An evaluation protocol"]
    (tmp_path / "eer.py").write_text("\n".join([section[0].code, section[-1].code]))
    here = {"__name__": "eer"}
    for block in (section[0], section[-1]):
        block.run(here)
    images, same = [jpeg(seed, 112) for seed in range(40)], [pair % 2 == 0 for pair in range(20)]
    (tmp_path / "tiny.bin").write_bytes(pickle.dumps((images, same)))
    monkeypatch.chdir(tmp_path)

    def as_a_script(*words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "eer.py", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def in_process(main, *words):
        ended = called(main, *words)
        assert ended.code == 0, ended.out + ended.error
        return ended.out

    for seed, (model, call) in enumerate({"a": as_a_script, "b": partial(in_process, here["main"])}.items()):
        write_onnx(tmp_path / f"{model}.onnx", seed=seed)
        said = call("tiny.bin", "--checkpoint", f"{model}.onnx", "--output", model, "--cache", "kept")
        assert "EER" in said and "of 40 embeddings are in kept" in said
        features = load_network(tmp_path / f"{model}.onnx").model
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(image)))) for image in images])
        pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1
        x = torch.nn.functional.normalize(features(pixels) + features(pixels.flip(3)))
        cosines = (x[0::2] * x[1::2]).sum(1).numpy()
        refused, accepted = (
            np.array([f(cosines[np.array(same) == kind], t) for t in sorted({-2.0, *cosines})])
            for kind, f in ((True, lambda c, t: (c < t).mean()), (False, lambda c, t: (c >= t).mean()))
        )
        written = json.loads((tmp_path / model / "results.json").read_text())["protocols"]["Equal error rate"]
        assert abs(written["rates"]["EER"] - (refused + accepted)[np.abs(refused - accepted).argmin()] / 2) <= 0.05
        low, high = written["interval"]["EER"]
        assert 0 <= low < written["rates"]["EER"] < high <= 1
    in_process(report.main, "--results", "a", "b", "--output", "report")
    shown = (tmp_path / "report/index.html").read_text()
    assert "<h2>Equal error rate</h2>" in shown and "Pairs of tiny.bin." in shown and "b − a" in shown


def test_the_optimiser_steps_as_published(page):
    lion = page("An optimiser")["Lion"]
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = lion([parameter], lr=0.1, betas=(0.6, 0.8), weight_decay=0.25)
    expected, momentum = parameter.detach().double().numpy().copy(), np.zeros(3)
    for gradient in ([1.0, 1.0, -3.0], [-0.25, 4.0, 0.8], [-1.0, -9.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        direction = np.sign(0.6 * momentum + 0.4 * np.array(gradient))
        expected -= 0.1 * (direction + 0.25 * expected)
        momentum = 0.8 * momentum + 0.2 * np.array(gradient)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6)


def test_the_sink_keeps_the_newest_record_until_it_is_closed(page, tmp_path):
    sink = page("A log sink")["Heartbeat"](tmp_path)
    for step in (1, 2):
        sink.log({"step": step, "loss": 3.5})
    record = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (record["step"], record["loss"]) == (2, 3.5)
    sink.close()
    assert not list(tmp_path.glob("heartbeat*"))


def test_the_recipe_adds_its_penalty(page):
    recipe = page("A recipe")["NormPenalty"](factor=2.0)
    head = PartialFC(create_margin("arcface", s=8, m=0.2), 4, 5)
    images, labels = torch.randn(6, 4), torch.arange(6) % 5
    batch = Batch(images, labels, torch.arange(6), torch.zeros(6, 1))
    result = recipe.step(batch, torch.nn.Identity(), head, 0.0)
    penalty = np.square(np.log(np.sqrt(np.square(images.double().numpy()).sum(1)))).mean()
    assert abs(result.loss.item() - head(images, labels).loss.item() - 2 * penalty) < 1e-5


def test_parts_outside_the_repository_train(tmp_path, monkeypatch):
    """One run of a margin, a backbone and a recipe of the page, by the page's own script; what that calls reads it."""
    monkeypatch.chdir(tmp_path)
    first = {section: next(block for block in BLOCKS if block.section == section) for section in SECTIONS}
    parts = [first[section] for section in ("A margin", "A backbone", "A recipe")]
    (tmp_path / "my_parts.py").write_text("\n".join(block.code for block in parts))
    (tmp_path / "my_facemill.py").write_text(next(block.code for block in BLOCKS if block.section == SCRIPT))
    for image in range(24):
        (tmp_path / f"faces/{image % 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"faces/{image % 4}/{image}.jpg").write_bytes(jpeg(image, 32))
    config = {
        "data": {"train": str(tmp_path / "faces"), "batch_size": 8, "threads": 1},
        "model": {"name": "patch_net", "embedding_size": 8, "input_size": 32, "channels": 8},
        "head": {"margin": "fading_cosface", "s": 8, "m": 0.2},
        "recipe": {"name": "norm_penalty", "factor": 0.1},
        "schedule": {"epochs": 1},
        "precision": "fp32",
        "device": "cpu",
        "log": {"every_steps": 1, "sinks": ["jsonl"]},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "my_facemill.py", "train", "--config", "my.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for block in parts:
        block.run({"__name__": "my_parts"})
    read = called(console.main, "folders", "faces", "--checkpoint", "run", "--output", "found")
    assert read.code == 0, read.out + read.error
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(record["norm_penalty"] > 0 for record in records)
    assert set(torch.load(tmp_path / "run/model.pt", weights_only=True)) >= {"patches.weight", "project.weight"}
