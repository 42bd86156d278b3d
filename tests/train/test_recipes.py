"""Recipes in whole runs, and the parts of a step that a run does not show."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

import losses.head.partial_fc
from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from losses.head.collective import rank, world_size
from models import create_model
from pipelines.common.errors import UserError
from pipelines.common.transfers import HostCopy
from pipelines.loading.loader import Batch
from tests.train.support import close, curve
from train.build import build_backbone
from train.groups import trained_groups
from train.optim import create_optimizer
from train.recipes import RECIPES, create_recipe
from train.recipes.backbones import last_norm, unfreeze_scale
from train.recipes.topofr import TopoFR
from train.recipes.transface import TransFace
from train.sections.model import Model
from train.sections.optim import Optim


def batch_of(count, size, num_uniforms, clean=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return Batch(
        images=images,
        labels=torch.arange(count) % 4,
        indices=torch.arange(count),
        uniforms=torch.rand(count, 1 + num_uniforms, generator=generator),
        clean=images * 0.5 if clean else None,
    )


class Linear(torch.nn.Module):
    """A backbone of one layer with fixed patch outputs."""

    patch_size = 6

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 18 * 18, 8)
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, images):
        return self.norm(self.layer(images.flatten(1)))

    def forward_patches(self, images):
        patches = images.mean(1).unfold(1, 6, 6).unfold(2, 6, 6).flatten(1, 2).flatten(2)
        return self(images), patches.mean(2), patches.std(2)


def test_a_network_gets_the_landmarks_of_a_batch():
    class Keypoints(Linear):
        def forward(self, images, landmarks):
            self.seen = landmarks
            return super().forward(images)

    backbone, head = Keypoints(), PartialFC(create_margin("arcface"), 8, 4)
    batch = replace(batch_of(8, 18, 0), landmarks=torch.rand(8, 5, 2))
    assert create_recipe("plain").step(batch, backbone, head, 0.0).loss.isfinite()
    assert backbone.seen is batch.landmarks


def test_transface_perturbs_a_share_and_weighs_rows():
    torch.manual_seed(0)
    recipe, backbone = TransFace(), Linear()
    network = recipe.network(backbone)
    head = PartialFC(create_margin("arcface"), 8, 4)
    batch = batch_of(40, 18, recipe.num_uniforms)
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
    chosen = batch.uniforms[:, 1] < 0.2
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


class Waits(HostCopy):
    """A copy that notes when it begins and when the host needs it."""

    def __init__(self, tensor):
        super().__init__(tensor)
        self.shape = tuple(tensor.shape)
        self.events.append(("begun", self.shape))

    def result(self):
        self.events.append(("needed", self.shape))
        return super().result()


def test_topofr_gives_the_device_its_work_before_it_waits(monkeypatch):
    """Three copies: the images' distances begin before the network; what the host waits for comes behind the head."""
    Waits.events = events = []
    monkeypatch.setattr("losses.auxiliary.topology.HostCopy", Waits)
    monkeypatch.setattr("losses.auxiliary.hardness.HostCopy", Waits)
    recipe, backbone = TopoFR(), Linear()
    head = PartialFC(create_margin("arcface", s=16.0), 8, 4, entropy=True)
    backbone.register_forward_hook(lambda *_: events.append("network"))
    head.register_forward_hook(lambda *_: events.append("head"))
    recipe.step(batch_of(12, 18, 0, clean=True), backbone, head, 0.0)
    trees, mixture = (12, 12), (2, 12)
    assert events == [
        ("begun", trees), "network", ("begun", trees), "head",
        ("needed", trees), ("needed", trees), ("begun", mixture), ("needed", mixture),
    ]  # fmt: skip


@pytest.mark.parametrize("margin", ["elasticface", "arcface"])
def test_random_numbers_go_to_margins_that_draw(margin):
    recipe, head = create_recipe("plain"), PartialFC(create_margin(margin), 8, 4)
    batch = batch_of(6, 18, 0)
    given = []
    head.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["uniform"]), with_kwargs=True)
    recipe.step(batch, Linear(), head, 0.0)
    assert torch.equal(given[0], batch.uniforms[:, 0]) if margin == "elasticface" else given == [None]


def test_topofr_trains_the_scale_of_embeddings():
    weights = {}
    for name, options in (("plain", {}), ("topofr", {"topology": 2.0})):
        torch.manual_seed(0)
        recipe, backbone = create_recipe(name, **options), create_model("r18", 16, 32, width=0.125)
        unfreeze_scale(backbone, recipe, create_margin("arcface"))
        network = recipe.network(backbone)
        head = PartialFC(create_margin("arcface", s=16.0), 16, 4, entropy=True)
        weight = backbone.features.weight
        weights[name] = [weight.detach().clone()]
        with torch.no_grad():
            weight *= 8
        optim = Optim(lr=0.01, clip=None)
        optimizer = create_optimizer(trained_groups(backbone, recipe, optim)[0], optim)
        for _ in range(8):
            recipe.step(batch_of(32, 32, 0, clean=True), network, head, 0.0).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[name].append(weight.detach() / 8)
    start, end = weights["plain"]
    assert (start == 1).all() and (end == 1).all()
    start, end = weights["topofr"]
    assert torch.allclose(start, torch.tensor(1 / (2 * 16**0.5)))
    assert end.norm() < 0.8 * start.norm()


@pytest.mark.parametrize(
    ("name", "kept", "scaled"),
    [
        ("r18", {"freeze": ["!fc.weight"]}, False),
        ("r18", {"lora": {"rank": 2}}, False),
        ("vit_t", {"freeze": ["feature.*.weight"]}, False),
        ("r18", {"freeze": ["features.weight"]}, False),
        ("r18", {"freeze": ["biases"]}, True),
    ],
)
def test_topofr_leaves_the_scale_to_who_keeps_it(name, kept, scaled):
    recipe, model = create_recipe("topofr"), Model(name=name, embedding_size=16, input_size=32, **kept)
    margin, here = create_margin("arcface"), World(torch.device("cpu"))
    backbone = build_backbone(model, recipe, margin, here, seed=0, batch_size=2, fresh=not model.lora)
    norm = last_norm(backbone)
    with torch.no_grad():
        norm.bias.fill_(1.0)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    network = recipe.network(backbone)
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == trained
    assert norm.weight.requires_grad == scaled
    factor = 1 / (2 * 16**0.5) if scaled else 1.0
    assert torch.allclose(norm.weight, torch.tensor(factor)) and torch.allclose(norm.bias, torch.tensor(factor))


@pytest.mark.parametrize(("margin", "trained"), [("arcface", False), ("magface", True), ("gb_magface", True)])
def test_margins_that_see_norms_let_the_network_scale_them(margin, trained):
    """A batch norm with weights of 1 gives embeddings of √d in the mean, whatever a loss would have."""
    model, here = Model(name="r18", width=0.125, embedding_size=16, input_size=32), World(torch.device("cpu"))
    margin = create_margin(margin)
    backbone = build_backbone(model, create_recipe("plain"), margin, here, seed=0, batch_size=2, fresh=True)
    assert backbone.features.weight.requires_grad == trained


def test_topofr_as_its_code_does_it():
    """The last norm trained from 1 on, and rows weighed by the mixture alone, 1 to 2."""
    torch.manual_seed(0)
    recipe, backbone = create_recipe("topofr", fit_scale=False, confidence_weight=False), create_model("r18", 16, 32)
    before = backbone.features.bias.detach().clone().fill_(0.5)
    with torch.no_grad():
        backbone.features.bias.copy_(before)
    unfreeze_scale(backbone, recipe, create_margin("arcface"))
    network = recipe.network(backbone)
    weight = backbone.features.weight
    assert (weight == 1).all() and weight.requires_grad and torch.equal(backbone.features.bias, before)
    head, batch = PartialFC(create_margin("arcface"), 16, 4, entropy=True), batch_of(24, 32, 0, clean=True)
    row_weights = {}
    for own in (True, False):
        recipe.confidence_weight = own
        row_weights[own] = recipe.step(batch, network, head, 0.0).metrics["row_weight"]
    assert 1 <= row_weights[False] <= 2 and row_weights[True] < row_weights[False]


@pytest.mark.parametrize("name", ["r18", "mbf", "vit_t", "ir_18"])
def test_topofr_keeps_what_a_backbone_has_learnt(name):
    torch.manual_seed(0)
    backbone = create_model(name, 16, 32).eval()
    last = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm1d)][-1]
    for parameter in last.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2)
    images = batch_of(4, 32, 0).images
    before = backbone(images)
    recipe = create_recipe("topofr")
    unfreeze_scale(backbone, recipe, create_margin("arcface"))
    after = recipe.network(backbone)(images)
    assert torch.allclose(torch.nn.functional.normalize(after), torch.nn.functional.normalize(before), atol=1e-5)
    assert (after.norm() < before.norm() / 4) == last.affine
    assert all(parameter.requires_grad for parameter in last.parameters())


def test_contraface_views_differ():
    recipe, backbone = create_recipe("contraface"), create_model("r18", 16, 32, dropout=0.4)
    first, second = recipe.network(backbone)(batch_of(8, 32, 0).images)
    assert not torch.allclose(first, second)


def test_contraface_begins_as_the_plain_recipe():
    """One view and the margin loss, at its own dropout; from ``late_epoch`` on two views and their contrast."""
    recipe, plain = create_recipe("contraface", late_epoch=2, dropout=0.3), create_recipe("plain")
    backbone = create_model("r18", 16, 32, dropout=0.3)
    network, head = recipe.network(backbone), PartialFC(create_margin("elasticface"), 16, 4)
    batch, rows = batch_of(8, 32, 0), []
    head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))

    def result(recipe, network, epoch):
        torch.manual_seed(3)
        return recipe.step(batch, network, head, epoch)

    early, expected = result(recipe, network, 1.99), result(plain, backbone, 1.99)
    assert torch.equal(early.loss, expected.loss) and early.metrics.keys() == {"cosine"}
    assert backbone.dropout.p == 0.3 and recipe.contrast.margin == 0
    late = result(recipe, network, 2.0)
    assert late.metrics["contrast"] > 0 and backbone.dropout.p == 0.6 and recipe.contrast.margin != 0
    assert rows == [8, 8, 16]


def test_contraface_sets_the_heads_dropout_alone():
    """Those between a ViT's blocks stay as its own options made them."""
    recipe, backbone = create_recipe("contraface", late_dropout=0.7), create_model("timm/test_vit", 16, 32)
    before = {name: m.p for name, m in backbone.named_modules() if isinstance(m, torch.nn.Dropout)}
    network, head = recipe.network(backbone), PartialFC(create_margin("arcface"), 16, 4)
    recipe.step(batch_of(4, 32, 0), network, head, 0.0)
    after = {name: m.p for name, m in backbone.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert len(before) > 5 and after == before | {"dropout": 0.7}


@pytest.mark.parametrize("name", ["transface", "contraface"])
def test_a_backbone_that_does_not_fit(name):
    with pytest.raises(ValueError, match=f"recipe {name} needs"):
        create_recipe(name).network(create_model("mbf", 16, 56))


@pytest.mark.parametrize(("name", "options"), [("edgeface_xxs", {}), ("timm/test_vit", {"pool": "own"})])
def test_contraface_needs_a_dropout_before_the_last_layer(name, options):
    with pytest.raises(UserError, match="contraface needs a backbone with dropout, such as .* model.pool=flatten$"):
        create_recipe("contraface").network(create_model(name, 16, 64, **options))


class Layers(torch.nn.Module):
    """A backbone for any recipe, without batch statistics and without randomness."""

    patch_size = 6

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3 * 18 * 18, 12), torch.nn.Linear(12, 8)])
        self.dropout = torch.nn.Dropout(0)

    def forward(self, images):
        return self.head(self.trunk(images))

    def trunk(self, images):
        return self.layers[0](images.flatten(1)).tanh()

    def head(self, features):
        return self.layers[1](self.dropout(features))

    def forward_patches(self, images):
        patches = images.mean(1).unfold(1, 6, 6).unfold(2, 6, 6).flatten(1, 2).flatten(2)
        return self.head(self.trunk(images)), patches.mean(2), patches.std(2)


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"distill"}))  # which needs a teacher
def test_classes_are_drawn_before_the_network_runs(name, monkeypatch):
    """So that the host need not wait for it: with the labels that the head gets, whatever a recipe makes of them."""
    happened = []
    drawn = losses.head.partial_fc.draw
    monkeypatch.setattr(losses.head.partial_fc, "draw", lambda *args: happened.append("draw") or drawn(*args))
    recipe = create_recipe(name)
    network = recipe.network(Layers())
    network.register_forward_hook(lambda *_: happened.append("network"))
    head = PartialFC(create_margin("arcface"), 8, 40, sample_rate=0.5, entropy=recipe.entropy)
    batch = batch_of(8, 18, recipe.num_uniforms, clean=True)
    head.prepare(batch.labels)
    recipe.step(batch, network, head, 0.0)
    assert happened[0] == "draw" and "network" in happened
    assert "draw" not in happened[happened.index("network") :]


def on_a_rank(name, options):
    """Loss and gradients, averaged as DistributedDataParallel does, of two steps on this rank's share of 16 images."""
    torch.manual_seed(0)
    here, world = rank(), world_size()
    recipe, backbone = create_recipe(name, **options), Layers()
    network, head = recipe.network(backbone), PartialFC(create_margin("arcface", s=16.0), 8, 4)
    results = []
    for seed in range(2):
        batch = batch_of(16, 18, recipe.num_uniforms, seed=seed)
        batch.uniforms[:, 2::4] = 0  # nothing of the donor patches, which come from a rank's own images
        share = slice(16 // world * here, 16 // world * (here + 1))
        batch = Batch(**{name: value[share] for name, value in vars(batch).items() if value is not None})
        loss = recipe.step(batch, network, head, 0.0).loss
        gradients = torch.autograd.grad(loss, list(backbone.parameters()))
        if world > 1:
            for gradient in gradients:
                dist.all_reduce(gradient)
        results.append((loss.item(), [(gradient / world).numpy() for gradient in gradients]))
    return results


@pytest.mark.parametrize(
    "name, options",
    [("transface", {"probability": 0.5}), ("contraface", {"gather": True, "contrast": 5.0, "late_dropout": 0})],
)
def test_two_ranks_are_one(ranks, name, options):
    single = on_a_rank(name, options)
    for several in ranks(2, on_a_rank, name, options):
        for (loss, gradients), (expected, whole) in zip(several, single):
            assert loss == pytest.approx(expected, rel=1e-5)
            assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, whole))


OVERRIDES = {
    "topofr": [
        "recipe.name=topofr",
        "data.augment=rsp",
        "recipe.gather=true",
        "model={name: r18, width: 0.125, embedding_size: 16, input_size: 32}",
    ],
    "contraface": ["recipe.name=contraface", "model={name: r18, embedding_size: 16, input_size: 32}"],
    "transface": [
        "recipe.name=transface",
        "model={name: transface_t, embedding_size: 16, input_size: 36}",
        "data.batch_size=12",
    ],
}


def test_topofr_on_two_ranks_is_one(config, finish, tmp_path):
    topofr = [*OVERRIDES["topofr"], "model={name: plain, embedding_size: 16, input_size: 32}"]
    finish(config, f"output={tmp_path}/one", *topofr)
    finish(config, f"output={tmp_path}/two", "data.batch_size=8", *topofr, ranks=2)
    close(curve(tmp_path / "two"), curve(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_resumed_recipes(config, finish, tmp_path, name):
    finish(config, f"output={tmp_path}/whole", *OVERRIDES[name], "checkpoint.every_steps=4")
    finish(config, f"output={tmp_path}/parts", *OVERRIDES[name], "checkpoint.every_steps=4")
    kept = sorted((tmp_path / "parts" / "checkpoints").iterdir())[:1]
    for path in (tmp_path / "parts" / "checkpoints").iterdir():
        if path not in kept:
            shutil.rmtree(path)
    finish(config, f"output={tmp_path}/parts", *OVERRIDES[name], "checkpoint.every_steps=4")
    assert np.array_equal(curve(tmp_path / "whole"), curve(tmp_path / "parts"))
