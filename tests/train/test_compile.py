"""`model.compile`: one graph that nothing breaks, compiled once, whatever goes on around the steps.

The backend here is ``aot_eager``: what torch traces, and how often, is what inductor would get. A test marked slow has
that one.
"""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from evaluate.features.ranks import World
from models import create_model
from tests.train.support import close, curve
from tests.train.test_verification import write_pairs
from train.build import check_compiler, replicate
from train.config import load_config
from train.trainer import Trainer

HERE = World(torch.device("cpu"), 0, 1)
R18 = "model={name: r18, width: 0.125, embedding_size: 16, input_size: 32, dropout: 0.2, checkpoint_activations: %s}"
VIT = "model={name: %s, embedding_size: 16, input_size: 36, mask_ratio: 0.1, drop_path: 0.1}"
RUNS = {  # overrides, and graphs: the dropout's probability is a constant of one
    "plain, recomputed": ([R18 % "true"], 1),
    "contraface": ([R18 % "false", "recipe.name=contraface", "recipe.late_epoch=0.5"], 2),
    "transface": ([VIT % "transface_t", "recipe.name=transface"], 1),
    "topofr": ([R18 % "false", "recipe.name=topofr", "data.augment=rsp"], 1),
    "vit": ([VIT % "vit_t"], 1),
}
SLOW = ("transface", "topofr", "vit")


def fit(config, overrides, backend, graphs=1):
    """Run a config; the number of graphs compiled for its steps, and the reasons of graph breaks."""
    torch._dynamo.reset()
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    with patch("torch.compile", partial(torch.compile, backend=backend)):
        trainer = Trainer(load_config(config, overrides), world)
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
        trainer.fit()
    assert all(module.training for module in trainer.learner.network.modules())
    return counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RUNS])
def test_graphs_of_a_whole_run(ranks, config, tmp_path, name):
    """Two ranks, two batches a step, averages, verification on two sets whose last batches are short, checkpoints."""
    sets = [write_pairs(tmp_path / f"{count}.bin", count) for count in (11, 14)]
    often = ["data.batch_size=4", "optim.accumulate=2", "checkpoint.every_steps=2", "schedule.epochs=1"]
    verify = [f"verify.bins=[{sets[0]},{sets[1]}]", "verify.every_steps=2", "verify.batch_size=4"]
    overrides, graphs = RUNS[name]
    settings = ["precision=bf16", "optim.ema=0.9", *often, *verify, *overrides, "model.compile=true"]
    assert ranks(2, fit, config, settings, "aot_eager", graphs) == [(graphs, {})] * 2


def learnt(network, images):
    """The outputs of two steps, all gradients, all buffers."""
    outputs = []
    for _ in range(2):
        out = network(images)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()  # of squares, batch norm makes a constant
        outputs.append(out.detach())
    return [*outputs, *(p.grad for p in network.parameters() if p.requires_grad), *network.buffers()]


@pytest.mark.parametrize("name", ["mbf", *(pytest.param(n, marks=pytest.mark.slow) for n in ("r18", "ir_18", "vit_t"))])
def test_what_is_compiled_computes_the_same(name):
    """Of every family; recomputing, which counts no batch twice in the running statistics."""
    options = {"drop_path": 0.0, "mask_ratio": 0.0} if name == "vit_t" else {"dropout": 0.0} if name == "ir_18" else {}
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        network = create_model(name, 16, 36, checkpoint_activations=compiled, **options)
        images = torch.rand(4, 3, 36, 36) * 2 - 1
        called = network
        if compiled:
            called = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
        results.append(learnt(called, images))
    largest = max(float(expected.abs().max()) for expected in results[0])
    for ours, expected in zip(*results, strict=True):  # a bias before a batch norm has a gradient of rounding errors
        atol = 1e-3 * max(float(expected.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=atol)


def test_the_network_itself_is_not_compiled():
    """It is verified, in other shapes and in evaluation mode."""
    network = torch.nn.Linear(3, 3)
    with patch("torch.compile", partial(torch.compile, backend="eager")):
        compiled = replicate(network, HERE, compile=True, compress="none")
    counters.clear()
    network(torch.rand(5, 3))
    assert not counters["stats"]["unique_graphs"]
    compiled(torch.rand(5, 3))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_missing_compiler_is_told_in_one_line():
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nin many lines")

    with (
        patch("torch.compile", partial(torch.compile, backend=broken)),
        pytest.raises(ValueError, match=r"model.compile needs a C\+\+ compiler .*No working.*or set") as raised,
    ):
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_inductor_trains_as_eager_does(ranks, config, tmp_path):
    for compile in ("true", "false"):
        settings = [R18 % "false", "model.dropout=0", f"model.compile={compile}", "schedule.epochs=1"]
        ranks(1, fit, config, [*settings, f"output={tmp_path}/{compile}"], "inductor")
    close(curve(tmp_path / "true"), curve(tmp_path / "false"))
