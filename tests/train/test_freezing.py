"""What is not trained stays as it is, in every way that a run could change it; LoRA's updates alone move."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from evaluate.features.network import load_network
from evaluate.features.ranks import World
from losses import create_margin
from models import create_model
from models.lora import merged
from models.registry import BACKBONES
from models.sharded import read_sharded
from models.weights import load_weights, read_weights
from pipelines.common.errors import UserError
from tests.train.plain_run import Normalised
from train.build import build_backbone
from train.config import Config, load_config
from train.freezing import hold_norms, restrict
from train.keys import key_table
from train.recipes import Recipe
from train.sections.model import Lora
from train.step_folders import complete
from train.trainer import Trainer

R18 = "model={name: r18, width: 0.125, embedding_size: 16, input_size: 32, %s}"
LORA = "lora: {rank: 2, alpha: 4, match: ['layer*.conv*.weight', fc.weight]}"


def section(freeze=(), lora=None):
    return SimpleNamespace(freeze=list(freeze), lora=lora)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_frozen():
    model = create_model("r18", 16, 32, width=0.125)
    everything = trained(model)
    restrict(model, section(["layer[12].*", "norms", "conv1.weight"]))
    left = trained(model)
    norms = {name for name in everything if ".bn" in name or name.split(".")[0] in ("bn1", "bn2", "features")}
    assert left == {
        n for n in everything - norms if n[:7] not in ("layer1.", "layer2.", "conv1.w") and "sample.1" not in n
    }
    held = create_model("r18", 16, 32, width=0.125).train()
    hold_norms(held, section(["layer[12].*", "bn1.weight"]))
    modes = {name: module.training for name, module in held.named_modules() if "Norm" in type(module).__name__}
    assert {name for name, mode in modes.items() if not mode} == {
        name for name in modes if name[:6] in ("layer1", "layer2")
    }


def test_all_but_one():
    model = create_model("r18", 16, 32, width=0.125)
    restrict(model, section(["!fc.weight"]))
    assert trained(model) == {"fc.weight"}
    hold_norms(model.train(), section(["!fc.weight"]))
    assert not any(module.training for module in model.modules() if "Norm" in type(module).__name__)


def test_a_norm_without_parameters_is_named_like_others():
    model = create_model("ir_18", 16, 32).train()
    hold_norms(model, section())
    assert model.output_layer[4].training
    hold_norms(model, section(["output_layer.*"]))
    assert not model.output_layer[4].training and model.input_layer[1].training


def test_mistakes():
    model = create_model("r18", 16, 32, width=0.125)
    with pytest.raises(
        ValueError, match=r"model.freeze: layer5.\* matches no trained parameter; names are such as conv1"
    ):
        restrict(model, section(["layer5.*"]))
    with pytest.raises(ValueError, match=r"leaves nothing of the backbone to train.* names are fc.weight, fc.bias"):
        restrict(model, section(["*"]))


def make(config, overrides):
    BACKBONES["plain"] = Normalised
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    return Trainer(load_config(config, overrides), world)


def fit(config, overrides):
    trainer = make(config, overrides)
    trainer.fit()
    return trainer.output


OFTEN = ["schedule.epochs=1", "checkpoint.every_steps=2", "optim.weight_decay=0.1", "optim.ema=0.5", "optim.clip=0.1"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights whose statistics no batch of the data set has."""
    torch.manual_seed(5)
    model = create_model("r18", 16, 32, width=0.125)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    path = tmp_path_factory.mktemp("start") / "model.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("compile", ["false", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [1, 3])
def test_a_run_leaves_it_as_it_was(ranks, config, tmp_path, start, size, compile):
    """Decay, clipping, averages of weights and of statistics over ranks: not a bit of what is frozen moves."""
    more = ["data.batch_size=5", f"model.compile={compile}", f"output={tmp_path}/run"]
    model = R18 % f"freeze: ['layer[123].*', conv1.weight, bn1.*], init_from: {start}"
    ranks(size, fit, config, [model, *OFTEN, *more])
    before, after = read_weights(start).tensors, read_weights(tmp_path / "run").tensors
    frozen = {name for name in before if name.startswith(("layer1", "layer2", "layer3", "conv1", "bn1"))}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen | {"features.weight"}


def test_what_is_frozen_normalises_as_in_evaluation(ranks, config, start):
    (found,) = ranks(1, compare, config, [R18 % f"freeze: [norms], init_from: {start}, dropout: 0.0"])
    assert found < 1e-4  # in batch statistics it would be of the order of 1


def compare(config, overrides):
    trainer = make(config, overrides)
    images = torch.randn(4, 3, 32, 32)
    training = trainer.learner.network(images).detach()
    model = create_model("r18", 16, 32, width=0.125)
    model.load_state_dict(trainer.learner.backbone.state_dict())
    return float((training - model.eval()(images)).abs().max() / training.abs().max())


@pytest.mark.parametrize("compile", ["false", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [1, 2])
def test_lora_trains_its_updates_alone(ranks, config, tmp_path, start, size, compile):
    more = ["data.batch_size=8", f"model.compile={compile}", f"output={tmp_path}/run"]
    ranks(size, fit, config, [R18 % f"{LORA}, init_from: {start}", *OFTEN, *more])
    before, after = read_weights(start).tensors, read_weights(tmp_path / "run").tensors
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "fc.weight" in moved and moved == {
        name for name in before if name == "fc.weight" or name.startswith("layer") and ".conv" in name
    }

    newest = complete(tmp_path / "run" / "checkpoints")[-1]
    stored = read_sharded(newest, "ema")
    originals = {name.replace("parametrizations.weight.original", "weight"): t for name, t in stored.items()}
    assert all(torch.equal(originals[name], before[name]) for name in before)
    assert all(torch.equal(merged(stored)[name], after[name]) for name in after)
    model = create_model("r18", 16, 32, width=0.125)
    load_weights(model, newest)  # as every other reader of weights
    assert all(torch.equal(after[name], tensor) for name, tensor in model.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_network(tmp_path / "run").model(images), model.eval()(images), rtol=1e-4, atol=1e-3)


def test_lora_goes_on_where_it_stopped(ranks, config, tmp_path, start):
    overrides = [R18 % f"{LORA}, init_from: {start}", *OFTEN]
    ranks(1, fit, config, [*overrides, f"output={tmp_path}/one"])
    for path in complete(tmp_path / "one" / "checkpoints"):
        if path.name == "step_000000002":
            shutil.copytree(path, tmp_path / "two" / "checkpoints" / path.name)
    ranks(1, fit, config, [*overrides, f"output={tmp_path}/two"])
    one, two = (read_weights(tmp_path / name).tensors for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(AssertionError, match=r"it trains rank=2 .* model.freeze and model.lora"):
        ranks(1, fit, config, [R18 % f"freeze: [norms], init_from: {start}", *OFTEN, f"output={tmp_path}/two"])


def test_keys_of_lora(config):
    assert load_config(config, [R18 % "lora: {}"]).model.lora == Lora()
    with pytest.raises(ValueError, match=r"model.lora.rank: must be greater than 0, not 0"):
        load_config(config, [R18 % "lora: {rank: 0}"])
    with pytest.raises(ValueError, match=r"unknown key model.lora.rnk"):
        load_config(config, [R18 % "lora: {rnk: 4}"])
    assert "\nmodel.lora.rank " in key_table(Config)


def test_lora_needs_a_network_that_is_trained(config):
    """What keeps random weights, and normalises by statistics of nothing, learns nothing."""
    with pytest.raises(UserError, match=r"model.lora keeps the network as it begins: set model.init_from"):
        build_backbone(
            load_config(config, [R18 % "lora: {rank: 2}"]).model,
            Recipe(),
            create_margin("arcface"),
            World(torch.device("cpu")),
            seed=0,
            batch_size=8,
            fresh=True,
        )


def test_lora_freezes_the_rest(config):
    with pytest.raises(ValueError, match="lora freezes the whole backbone: leave out freeze"):
        load_config(config, [R18 % f"{LORA}, freeze: [norms]"])
    model = create_model("r18", 16, 32, width=0.125)
    restrict(model, section(lora=Lora(rank=2)))
    assert trained(model) and all("parametrizations.weight.0" in name for name in trained(model))
