"""What a run refuses to begin with, for a reason that only its parts know."""

import numpy as np
import pytest
import torch

from evaluate.features.ranks import World
from losses import create_margin
from pipelines.loading.landmarks import template_landmarks
from tests.pipelines.face_source import COUNT, FaceSource
from train.build import (
    build_backbone,
    build_centre_optimizer,
    build_head,
    build_loader,
    build_recipe,
    landmarks_of,
    replicate,
)
from train.config import Config
from train.recipes import Recipe
from train.sections.data import Data
from train.sections.head import Head
from train.sections.model import Model

HERE = World(torch.device("cpu"), 0, 1)


def backbone(batch_size):
    model = Model(name="mbf", width=0.0625, embedding_size=8, input_size=32)
    return build_backbone(model, Recipe(), create_margin("arcface"), HERE, seed=3, batch_size=batch_size, fresh=True)


def test_one_image_has_no_batch_statistics():
    with pytest.raises(ValueError, match="data.batch_size is 1, but mbf normalises"):
        backbone(batch_size=1)
    assert backbone(batch_size=2)(torch.randn(2, 3, 32, 32)).isfinite().all()


def head(**options):
    section = Head.model_validate({"s": 16, **options})
    return build_head(section, HERE, embedding_size=8, num_classes=5, entropy=False, half=True, seed=3, fresh=True)


def test_seeds_decide_the_initial_weights():
    first, again = backbone(2), backbone(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert torch.equal(head().weight, head().weight)


def test_landmarks_are_for_networks_that_take_some(tmp_path):
    def found(name, path=None):
        config = Config.model_construct(data=Data(train="faces", landmarks=path), model=Model(name=name))
        return landmarks_of(config, FaceSource())

    assert found("r18") is None
    assert found("vit_s_kprpe") is template_landmarks
    np.save(tmp_path / "landmarks.npy", np.full((COUNT, 5, 2), 0.25, np.float32))
    assert (found("vit_s_kprpe", str(tmp_path / "landmarks.npy"))(np.arange(3)) == 0.25).all()
    with pytest.raises(
        ValueError, match="data.landmarks is for backbones with landmarks, such as vit_b_kprpe, not r18"
    ):
        found("r18", str(tmp_path / "landmarks.npy"))


def test_a_recipe_is_told_of_the_landmarks(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Recipe, "begin", lambda _, run: told.append(run))
    np.save(tmp_path / "landmarks.npy", np.full((COUNT, 5, 2), 0.25, np.float32))
    data = {"train": "faces", "landmarks": str(tmp_path / "landmarks.npy"), "threads": 1}
    options = {"data": data, "model": {"name": "vit_s_kprpe"}, "precision": "fp32", "output": str(tmp_path)}
    config = Config.model_validate(options)
    build_recipe(config, FaceSource(), HERE)
    assert (told[0].landmarks(np.arange(3)) == 0.25).all()


def test_triton_needs_a_gpu():
    with pytest.raises(ValueError, match="head.kernels: triton needs a GPU"):
        head(kernels="triton")


def test_gradients_in_bf16_need_a_gpu():
    with pytest.raises(ValueError, match="optim.compress: bf16 works on GPUs only"):
        replicate(backbone(batch_size=2), HERE, compile=False, compress="bf16")


def loader(**options):
    data = Data.model_validate({"train": "faces", "batch_size": 4, "threads": 1, **options})
    return build_loader(data, FaceSource(), Recipe(), HERE, seed=3, image_size=48, accumulate=1, quarantine=None)


def test_where_images_are_decoded():
    assert next(loader()).images.shape == (4, 3, 48, 48)
    assert loader(hw_decoder_load=0.5)._decoder._hw_decoder_load == 0.5
    with pytest.raises(ValueError, match="data.decode: gpu needs a GPU; on a CPU it is cpu"):
        loader(decode="gpu")


@pytest.mark.parametrize(
    "options, fused", [({}, True), ({"fused": False}, False), ({"mode": "dense"}, False), ({"sample_rate": 0.5}, True)]
)
def test_when_centres_are_updated(options, fused):
    tree = {"data": {"train": "faces"}, "model": {"name": "mbf"}, "output": "run", "head": options}
    optimizer = build_centre_optimizer(Config.model_validate(tree), head(**options))
    assert optimizer.fused == fused


def test_centres_may_have_a_rule_of_their_own():
    tree = {"data": {"train": "faces"}, "model": {"name": "mbf"}, "output": "run", "optim": {"name": "adamw"}}
    assert build_centre_optimizer(Config.model_validate(tree), head()).algorithm == "adamw"
    tree["head"] = {"optim": {"name": "lion", "lr": 0.5, "betas": [0.7, 0.9], "weight_decay": 2}}
    own = build_centre_optimizer(Config.model_validate(tree), head())
    assert (own.algorithm, own.lr, own.betas, own.weight_decay) == ("lion", 0.05, (0.7, 0.9), 2)
