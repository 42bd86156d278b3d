"""Recipes in whole runs, and the parts of a step that a run does not show."""

import numpy as np
import pytest
import torch

from losses import PartialFC, create_margin
from models import create_model
from pipelines.loader import Batch
from tests.train.test_run import close, command, config, curve, faces, finish  # noqa: F401  fixtures
from train.recipes import create_recipe
from train.recipes.topofr import TopoFR
from train.recipes.transface import TransFace


def batch_of(count, size, numbers, clean=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return Batch(
        images=images,
        labels=torch.arange(count) % 4,
        indices=torch.arange(count),
        numbers=torch.rand(count, 1 + numbers, generator=generator),
        clean=images * 0.5 if clean else None,
    )


class Linear(torch.nn.Module):
    """A backbone of one layer with fixed patch outputs."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 18 * 18, 8)
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, images):
        return self.norm(self.layer(images.flatten(1)))

    def forward_patches(self, images):
        patches = images.mean(1).unfold(1, 6, 6).unfold(2, 6, 6).flatten(1, 2).flatten(2)
        return self(images), patches.mean(2), patches.std(2)


def test_transface_perturbs_a_share_and_weighs_rows():
    torch.manual_seed(0)
    recipe, backbone = TransFace(), Linear()
    network = recipe.network(backbone)
    head = PartialFC(create_margin("arcface"), 8, 4)
    batch = batch_of(40, 18, recipe.numbers)
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = backbone.norm.running_mean.clone()
    changed_statistics = []
    original = recipe._perturbed

    def watched(batch):
        out = original(batch)
        changed_statistics.append(not torch.equal(before, backbone.norm.running_mean))
        return out

    recipe._perturbed = watched
    result = recipe.step(batch, network, head, 0.0)
    chosen = batch.numbers[:, 1] < 0.2
    differs = (seen[0] != batch.images).flatten(1).any(1)
    assert differs.tolist() == chosen.tolist() and 0 < chosen.sum() < 40
    assert changed_statistics == [False] and backbone.training
    _, _, deviations = backbone.forward_patches(seen[0])
    head.step = 0
    weights = 1 + torch.exp(-deviations.mean(1))
    embeddings, _, _ = network(seen[0])
    assert torch.allclose(result.loss, head(embeddings, batch.labels, weights.detach()).loss, rtol=1e-5)


def test_topofr_weighs_rows_and_adds_topology():
    torch.manual_seed(0)
    recipe, backbone = TopoFR(), Linear()
    head = PartialFC(create_margin("arcface", s=16.0), 8, 4, entropy=True)
    result = recipe.step(batch_of(32, 18, 0, clean=True), backbone, head, 0.0)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert 0 < result.metrics["row_weight"] < 2 and result.metrics["topology"] > 0


def test_contraface_views_differ_and_phase_changes():
    recipe = create_recipe("contraface", late_epoch=2)
    backbone = create_model("r18", 16, 32, dropout=0.4)
    network = recipe.network(backbone)
    head = PartialFC(create_margin("arcface"), 16, 4)
    batch = batch_of(8, 32, 0)
    first, second = network(batch.images)
    assert not torch.allclose(first, second)
    for epoch, dropout in ((0.0, 0.4), (2.5, 0.6)):
        result = recipe.step(batch, network, head, epoch)
        assert torch.isfinite(result.loss) and backbone.dropout.p == dropout
    assert recipe.contrast.margin != 0


@pytest.mark.parametrize("name", ["transface", "contraface"])
def test_a_backbone_that_does_not_fit(name):
    with pytest.raises(ValueError, match=f"recipe {name} needs"):
        create_recipe(name).network(create_model("mbf", 16, 56))


OVERRIDES = {
    "topofr": ["recipe.name=topofr", "data.augment=rsp", "recipe.gather=true"],
    "contraface": ["recipe.name=contraface", "model={name: r18, embedding_size: 16, input_size: 32}"],
    "transface": [
        "recipe.name=transface",
        "model={name: transface_t, embedding_size: 16, input_size: 36}",
        "data.batch_size=12",
    ],
}


def test_topofr_on_two_ranks_is_one(config, tmp_path):  # noqa: F811
    finish(config, f"output={tmp_path}/one", *OVERRIDES["topofr"])
    finish(config, f"output={tmp_path}/two", "data.batch_size=8", *OVERRIDES["topofr"], ranks=2)
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_resumed_recipes(config, tmp_path, name):  # noqa: F811
    finish(config, f"output={tmp_path}/whole", *OVERRIDES[name], "checkpoint.every_steps=4")
    finish(config, f"output={tmp_path}/parts", *OVERRIDES[name], "checkpoint.every_steps=4")
    kept = sorted((tmp_path / "parts" / "checkpoints").iterdir())[:1]
    for path in (tmp_path / "parts" / "checkpoints").iterdir():
        if path not in kept:
            __import__("shutil").rmtree(path)
    finish(config, f"output={tmp_path}/parts", *OVERRIDES[name], "checkpoint.every_steps=4")
    assert np.array_equal(curve(tmp_path / "whole"), curve(tmp_path / "parts"))
