"""Distillation in single steps, against formulas, and in whole runs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from evaluate.features.network import Network, load_network
from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from losses.head.collective import rank, world_size
from models.sharded import read_sharded
from pipelines.loading.loader import Batch, Loader
from pipelines.sources import open_source
from tests.evaluate.features.test_store import Points
from tests.evaluate.networks import write_onnx
from tests.losses.auxiliary.test_distillation import expected_cosine, expected_relational
from tests.train.support import close, curve
from tests.train.test_trainer import fit, same
from train.config import load_config
from train.recipes import Distill, Run, create_recipe
from train.recipes.teacher import PresentTeacher, stored_teacher


class Student(nn.Module):
    """A backbone without batch statistics and without randomness: (b, 3, 16, 16) → (b, 8)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 8)

    def forward(self, images):
        return self.layer(images.flatten(1))


def batch_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1,
        labels=torch.arange(count) % 4,
        indices=torch.arange(count),
        uniforms=torch.rand(count, 1, generator=generator),
    )


def taught(dimension, **options):
    """The recipe, with a teacher that gives fixed random unit vectors, whatever the images."""
    torch.manual_seed(0)
    recipe = Distill("a file", **options)
    rows = nn.functional.normalize(torch.randn(64, dimension, generator=torch.Generator().manual_seed(5)))
    recipe.teacher = lambda batch: rows[batch.indices]
    if dimension != 8:
        recipe.projection = nn.Linear(8, dimension, bias=False)
    return recipe


@pytest.mark.parametrize("dimension", [8, 6])
@pytest.mark.parametrize(
    "options", [{"margin": 0.5}, {"margin": 0}, {"relational": 3.0}, {"margin": 0, "cosine": 0, "relational": 2.0}]
)
def test_the_loss_is_the_sum_of_its_terms(dimension, options):
    recipe, student, batch = taught(dimension, **options), Student(), batch_of(12)
    head = PartialFC(create_margin("arcface", s=16.0), 8, 4)
    result = recipe.step(batch, student, head, 0.0)
    factors = {"margin": 1.0, "cosine": 10.0, "relational": 0.0, **options}
    with torch.no_grad():
        embeddings, targets = student(batch.images), recipe.teacher(batch).double()
        projected = recipe.projection(embeddings) if dimension != 8 else embeddings
        loss = factors["margin"] * head(embeddings, batch.labels).loss.double()
        loss += factors["cosine"] * expected_cosine(projected.double(), targets)
        loss += factors["relational"] * expected_relational(embeddings.double(), targets)
    torch.testing.assert_close(result.loss.detach().double(), loss, rtol=1e-4, atol=1e-5)
    result.loss.backward()
    assert (head.weight.grad is None) == (factors["margin"] == 0)
    assert dimension == 8 or (recipe.projection.weight.grad is not None) == (factors["cosine"] > 0)


def on_a_rank():
    """Loss and gradients, averaged as the loop does, of this rank's share of 16 images."""
    here, world = rank(), world_size()
    recipe, student = taught(6, relational=3.0), Student()
    head = PartialFC(create_margin("arcface", s=16.0), 8, 4)
    share = slice(16 // world * here, 16 // world * (here + 1))
    batch = Batch(**{name: value[share] for name, value in vars(batch_of(16)).items() if value is not None})
    loss = recipe.step(batch, student, head, 0.0).loss
    gradients = torch.autograd.grad(loss, [*student.parameters(), *recipe.parameters()])
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    return loss.item(), [(gradient / world).numpy() for gradient in gradients]


def test_two_ranks_are_one(ranks):
    expected, whole = on_a_rank()
    for loss, gradients in ranks(2, on_a_rank):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, whole, strict=True))


def run_of(source, output):
    world = World(torch.device("cpu"))
    return Run(source, world, output, embedding_size=16, autocast=None, threads=1, max_bad_fraction=0.0)


@pytest.mark.parametrize("augment", ["none", "flip", "rsp"])
def test_stored_targets_are_those_of_the_clean_view(faces, tmp_path, augment):
    """Whatever is done to the images, and mirrored as they are."""
    source = open_source(faces)
    network = load_network(write_onnx(tmp_path / "teacher.onnx", size=32))
    stored = stored_teacher(network, tmp_path / "cache", run_of(source, tmp_path))
    present = PresentTeacher(network, torch.device("cpu"))
    loader = Loader(source, batch_size=24, seed=0, augment=augment, image_size=32, clean_view=True)
    mirrored = 0
    for _ in range(3):
        batch = next(loader)
        clean = Batch(batch.clean, batch.labels, batch.indices, batch.uniforms)
        torch.testing.assert_close(stored(batch), present(clean), atol=1e-3, rtol=0)
        mirrored += 0 if batch.mirrored is None else batch.mirrored.sum()
        assert (batch.mirrored is None) == (augment == "none")
    loader.close()
    assert augment == "none" or 20 < mirrored < 52


def test_a_teacher_gets_the_landmarks_of_the_runs_images(faces, tmp_path):
    """One that wants none does not care whose there are."""
    source = open_source(faces)
    landmarks = np.random.default_rng(0).random((len(source), 5, 2), np.float32)
    run = replace(run_of(source, tmp_path), landmarks=landmarks.__getitem__)
    stored = stored_teacher(Network(Points(), 32), tmp_path / "cache", run)
    loader = Loader(
        source, batch_size=8, seed=0, augment="none", image_size=32, landmarks=landmarks.__getitem__, clean_view=True
    )
    batch = next(loader)
    loader.close()
    present = PresentTeacher(Network(Points(), 32), torch.device("cpu"))
    torch.testing.assert_close(stored(batch), present(batch), atol=1e-3, rtol=0)
    network = load_network(write_onnx(tmp_path / "teacher.onnx", size=32))
    for each in (run, run_of(source, tmp_path)):
        stored_teacher(network, tmp_path / "other", each)
    assert len(list((tmp_path / "other").iterdir())) == 1


def test_images_are_brought_to_the_size_of_the_teacher():
    """To more pixels between their centres, to fewer by what falls into each."""

    class Identity(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    images = torch.rand(2, 3, 4, 4)
    batch = Batch(images, torch.zeros(2), torch.arange(2), torch.zeros(2, 1))
    same = PresentTeacher(Network(Identity(), 4), torch.device("cpu"))(batch)
    torch.testing.assert_close(same, nn.functional.normalize(images.flatten(1)))
    columns = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    rows = [np.interp(columns, np.arange(4), row) for row in images.flatten(0, 2).numpy()]
    larger = torch.tensor(np.stack(rows)).view(2, 3, 4, 8)
    rows = [np.interp(columns, np.arange(4), row) for row in larger.transpose(2, 3).flatten(0, 2).numpy()]
    larger = torch.tensor(np.stack(rows)).view(2, 3, 8, 8).transpose(2, 3)
    found = PresentTeacher(Network(Identity(), 8), torch.device("cpu"))(batch)
    torch.testing.assert_close(found.double(), nn.functional.normalize(larger.flatten(1)), atol=1e-5, rtol=0)
    spike = torch.zeros(1, 3, 12, 12)
    spike[..., 4, 4] = 1  # between the samples of a bilinear resize alone
    batch = Batch(spike, torch.zeros(1), torch.arange(1), torch.zeros(1, 1))
    assert PresentTeacher(Network(Identity(), 3), torch.device("cpu"))(batch).view(3, 3, 3)[0, 1, 1] > 0.3


def test_a_teacher_that_is_none():
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1) * torch.nan

    with pytest.raises(ValueError, match="teacher's embeddings are not finite"):
        PresentTeacher(Network(Broken(), 8), torch.device("cpu"))
    with pytest.raises(ValueError, match="set the factor cosine or relational"):
        create_recipe("distill", teacher="x", cosine=0)


@pytest.fixture
def settings(tmp_path):
    """Of a run that is taught by an ONNX network of another input and embedding size."""
    teacher = write_onnx(tmp_path / "teacher.onnx", size=24, embedding_size=12)
    return ["recipe.name=distill", f"recipe.teacher={teacher}", f"recipe.cache={tmp_path}/cache", "recipe.relational=1"]


def test_runs(ranks, config, settings, tmp_path):
    """One rank and two, resumed and at one go, are the same; the embeddings are made once."""
    ((_, learnt, _),) = ranks(1, fit, config, f"output={tmp_path}/one", *settings)
    assert learnt["projection.weight"].shape == (12, 16)
    (store,) = (tmp_path / "cache").iterdir()
    made = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    shutil.copytree(tmp_path / "one", tmp_path / "parts")
    for path in sorted((tmp_path / "parts/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    ((begun, parts, _),) = ranks(1, fit, config, f"output={tmp_path}/parts", *settings)
    assert begun == 12 and curve(tmp_path / "parts") == curve(tmp_path / "one")
    same(parts, learnt, rtol=0, atol=0)
    for _, others, _ in ranks(2, fit, config, f"output={tmp_path}/two", "data.batch_size=8", *settings):
        same(others, learnt, rtol=1e-3, atol=1e-4)
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))
    assert {path.name: path.stat().st_mtime_ns for path in store.iterdir()} == made
    lines = [json.loads(line) for line in (tmp_path / "one/log.jsonl").read_text().splitlines()]
    assert lines[-1]["teacher_cosine"] > lines[0]["teacher_cosine"] + 0.1


def test_runs_beside_the_teacher(ranks, config, settings, tmp_path):
    """Of the augmented batch, and without the margin loss: the class centres stay."""
    settings = [*settings, "recipe.view=same", "recipe.margin=0", "data.augment=rsp"]
    ranks(1, fit, config, f"output={tmp_path}/one", *settings)
    ranks(2, fit, config, f"output={tmp_path}/two", "data.batch_size=8", *settings)
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))
    first, last = (read_sharded(path, "head") for path in sorted((tmp_path / "one/checkpoints").iterdir())[::2])
    assert torch.equal(first["weight"], last["weight"]) and first["step"] < last["step"]


@pytest.mark.parametrize(
    "override, message",
    [
        ("recipe.teacher=/nowhere/at.onnx", "there is no checkpoint /nowhere/at.onnx"),
        ("recipe={name: distill}", "recipe.teacher"),
        ("recipe.view=augmented", "recipe.view: .*clean.*same"),
        ("recipe.cosine=-1", "recipe.cosine"),
    ],
)
def test_mistakes_of_a_config(config, settings, override, message, tmp_path):
    settings.append("model.name=mbf")
    with pytest.raises((ValueError, OSError), match=message):
        options = load_config(config, [*settings, override]).recipe.options
        create_recipe("distill", **options).begin(run_of(None, tmp_path))
