"""The moving average of the weights: its formula, steps left out, ranks, resuming, and who reads it."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evaluate.features.ranks import World
from models.registry import BACKBONES
from models.sharded import read_sharded
from models.weights import load_backbone, read_weights
from tests.train.plain_run import Normalised
from tests.train.support import curve, spoilt
from train.config import load_config
from train.ema import WeightAverage
from train.step_folders import complete
from train.trainer import Trainer

TAKEN = torch.tensor(True)


class Watched(Trainer):
    """A run that notes the backbone behind each step, and may be fed a bad image in one of them."""

    bad_at = None

    def train_step(self, batches):
        metrics = super().train_step(spoilt(batches) if self.step == self.bad_at else batches)
        self.states = [*getattr(self, "states", []), double(self.learner.backbone)]
        return metrics


def double(network):
    """The weights and statistics of a network in float64, copied."""
    return {name: tensor.double().clone() for name, tensor in network.state_dict().items()}


def make(config, overrides):
    BACKBONES["plain"] = Normalised
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    return Watched(load_config(config, overrides), world)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def by_formula(start, states, decay):
    """The average as a sum: each state times its share, 1 - d of its step and the d of all that follow."""
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(len(states))]
    shares = [(1 - d) * torch.tensor(decays[t + 1 :], dtype=torch.float64).prod() for t, d in enumerate(decays)]
    initial = torch.tensor(decays, dtype=torch.float64).prod()
    assert float(initial + sum(shares)) == pytest.approx(1)
    return {
        name: initial * start[name] + sum(share * state[name] for share, state in zip(shares, states))
        for name in start
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_it_is_the_formula_from_the_first_step_on(decay):
    network = small()
    average, start, states = WeightAverage(network, decay), double(network), []
    for step in range(120):
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor += 1 if tensor.dtype == torch.int64 else torch.randn_like(tensor)
        average.update(step, TAKEN)
        states.append(double(network))
    found = double(average.network)
    for name, expected in by_formula(start, states, decay).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
    assert found["1.num_batches_tracked"] == states[-1]["1.num_batches_tracked"]
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


def test_past_the_warm_start_it_is_torchs():
    network = small()
    ours = WeightAverage(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.n_averaged += 1  # at their first call they copy
    for step in range(100, 110):
        with torch.no_grad():
            for tensor in (*network.parameters(), network[1].running_mean, network[1].running_var):
                tensor += torch.randn_like(tensor)
        ours.update(step, TAKEN)
        theirs.update_parameters(network)
    for mine, other in zip(ours.network.parameters(), theirs.module.parameters()):
        torch.testing.assert_close(mine, other)
        assert mine.stride() == other.stride()
    torch.testing.assert_close(ours.network[1].running_var, theirs.module[1].running_var)


def test_statistics_of_the_average_are_those_of_its_activations():
    """The network's own are of its last weights: moving far, they are wrong for the average."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4, momentum=0.5))
    average, start = WeightAverage(layer, 0.98), layer[0].weight.detach().clone()
    way = torch.randn_like(start)
    for step in range(400):
        with torch.no_grad():
            layer[0].weight.copy_(start + way * step / 400)
        layer(1 + torch.randn(512, 8))
        average.update(step, TAKEN)
    of_the_average = average.network[0].weight.detach()
    true = of_the_average.sum(1), of_the_average.square().sum(1)  # of inputs with mean 1 and variance 1
    own, its = layer[1], average.network[1]

    def error(norm):
        return float((norm.running_mean - true[0]).abs().max() + (norm.running_var - true[1]).abs().max())

    assert error(its) < 0.3 * error(own)


def run_of_steps(config, overrides, bad_at=None):
    """The average behind six steps and by the formula, then whether any statistic of it is not finite."""
    trainer = make(config, [*overrides, "optim.ema=0.6"])
    trainer.bad_at = bad_at
    start, batches = double(trainer.learner.backbone), iter(trainer.loader)
    for _ in range(6):
        trainer.train_step(batches)
    trainer.loader.close()
    trainer.folder.release()
    found, states = double(trainer.learner.result), trainer.states
    finite = all(tensor.isfinite().all() for tensor in found.values())
    trainer._settle()
    sound = all(tensor.isfinite().all() for tensor in double(trainer.learner.result).values())
    if bad_at is None:
        expected = by_formula(start, states, 0.6)
    else:  # the average stands still, as if that step had a decay of 1
        weights, shares = (
            {name for name, _ in trainer.learner.backbone.named_parameters()},
            [1 - min(0.6, (1 + t) / (10 + t)) if t != bad_at else 0.0 for t in range(6)],
        )
        expected = {name: start[name] for name in weights}
        for share, state in zip(shares, states):
            expected = {name: value + share * (state[name] - value) for name, value in expected.items()}
    error = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    moved = max(float((found[name] - start[name]).abs().max()) for name in expected)
    return error, moved, finite, sound


SETTINGS = {
    "sgd": [],
    "adamw": ["optim.name=adamw", "optim.lr=0.001"],
    "accumulated": ["data.batch_size=4", "optim.accumulate=2"],
    "bf16": ["precision=bf16"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_in_a_run(ranks, config, tmp_path, name):
    ((error, moved, finite, _),) = ranks(1, run_of_steps, config, [f"output={tmp_path}/run", *SETTINGS[name]])
    assert error < 1e-6 < 1e-3 < moved and finite


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("bad_at", [0, 3])
def test_a_step_left_out_does_not_move_it(ranks, config, tmp_path, bad_at, world):
    overrides = [f"output={tmp_path}/run", f"data.batch_size={16 // world}"]
    for error, moved, _, sound in ranks(world, run_of_steps, config, overrides, bad_at):
        assert error < 1e-6 < 1e-3 < moved and sound


def fit(config, overrides):
    """Run to the end; returns what the ranks have as result, and which networks were verified."""
    trainer = make(config, overrides)
    trainer.verifier = verifier = Asked()
    trainer.fit()
    return double(trainer.learner.result), all(network is trainer.learner.result for network in verifier.networks)


class Asked:
    """Verification that notes of what, and finds what comes last the best."""

    sets = {"lfw": ()}

    def __init__(self):
        self.networks = []

    def __call__(self, backbone, autocast):
        self.networks.append(backbone)
        return {"lfw": SimpleNamespace(accuracy=len(self.networks) / 10, summary=lambda: SUMMARY)}

    def worst(self, name, result):
        return Image.new("RGB", (8, 8))


SUMMARY = {"pairs": 10, "accuracy": 0.5, "std": 0.1, "threshold": 1.0}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name].double(), theirs[name].double()), name


def test_it_is_what_is_verified_saved_and_read(ranks, config, tmp_path):
    model = "model={name: mbf, width: 0.0625, embedding_size: 16, input_size: 32}"
    ((result, verified),) = ranks(1, fit, config, [model, "optim.ema=0.9", "verify.every_steps=6"])
    assert verified
    checkpoint = complete(tmp_path / "run/checkpoints")[-1]
    for stored in (
        torch.load(tmp_path / "run/model.pt", weights_only=True),
        torch.load(tmp_path / "run/best.pt", weights_only=True),
        read_sharded(checkpoint, "ema"),
        read_weights(checkpoint).tensors,
        load_backbone(tmp_path / "run")[0].state_dict(),
        load_backbone(checkpoint)[0].state_dict(),
    ):
        same(stored, result)
    own = read_sharded(checkpoint)
    assert own.keys() == result.keys()
    assert not torch.equal(own["features.layers.3.running_mean"].double(), result["features.layers.3.running_mean"])


@pytest.mark.parametrize("world", [1, 2])
def test_resumed_and_resharded_bit_for_bit(ranks, config, tmp_path, world):
    settings = ["optim.ema=0.9", "checkpoint.keep=9", f"data.batch_size={16 // world}", "verify.every_steps=5"]
    whole = ranks(world, fit, config, [*settings, f"output={tmp_path}/whole"])
    for result, _ in whole:
        same(result, whole[0][0])
    for name in ("parts", "other"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for path in complete(tmp_path / name / "checkpoints"):
            if path.name > "step_000000008":
                shutil.rmtree(path)
    for result, _ in ranks(world, fit, config, [*settings, f"output={tmp_path}/parts"]):
        same(result, whole[0][0])
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    others = 3 - world
    loaded = ranks(others, begun, config, [*settings, f"data.batch_size={16 // others}", f"output={tmp_path}/other"])
    stored = read_sharded(tmp_path / "whole/checkpoints/step_000000008", "ema")
    for result in loaded:
        same(result, stored)


def begun(config, overrides):
    """The result of a run that has been resumed and has made no step."""
    trainer = make(config, overrides)
    trainer.loader.close()
    trainer.folder.release()
    return double(trainer.learner.result)


def refused(config, overrides):
    with pytest.raises(ValueError) as raised:
        fit(config, overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("before", "then", "words"),
    [
        ("0.9", "null", "it has the part ema, which this run has not"),
        ("null", "0.9", "this run has the part ema, which it has not"),
    ],
)
def test_a_run_without_it_does_not_go_on_with_it_nor_the_other_way_round(ranks, config, before, then, words):
    ranks(1, fit, config, [f"optim.ema={before}", "schedule.epochs=0.5"])
    (error,) = ranks(1, refused, config, [f"optim.ema={then}", "schedule.epochs=1"])
    assert words in error and "\n" not in error
