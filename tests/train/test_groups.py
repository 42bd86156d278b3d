"""Groups of parameters: who belongs to which, steps as torch.optim makes them, and runs that go on with them."""

import re

import pytest
import torch
from torch import nn

from models import create_model
from tests.train.support import close, curve, learnt
from train.groups import trained_groups
from train.optim import OPTIMIZERS, REFUSED, create_optimizer, set_learning_rate
from train.recipes import Recipe
from train.sections.optim import Group, Optim
from train.state import OptimizerState


def groups(*rules):
    return [Group(match=match, **values) for match, values in rules]


def members(found, *modules):
    """For each group the names of its parameters."""
    names = {id(parameter): name for module in modules for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in found]


def test_norms_are_all_that_normalise():
    backbone = create_model("r18", 16, 32, width=0.125)
    optim = Optim(groups=groups(("norms", {"weight_decay": 0})))
    (others, norms), _ = trained_groups(backbone, Recipe(), optim)
    normalised = {
        name
        for name, parameter in backbone.named_parameters()
        if name.split(".")[-2][:2] in ("bn", "fe") or ".downsample.1." in name
    } - {"features.weight"}  # which is not trained
    assert set(members([norms], backbone)[0]) == normalised and len(normalised) > 40
    assert norms["weight_decay"] == 0 and "weight_decay" not in others
    assert len(others["params"]) + len(norms["params"]) == sum(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(("name", "size"), [("vit_t", 36), ("ir_18", 32), ("mbf", 56)])
def test_what_adaface_leaves_without_decay(name, size):
    """The published rule: batch norms, and here a ViT's norms, weights and biases."""
    backbone = create_model(name, 16, size)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    expected = {id(p) for module in backbone.modules() if isinstance(module, kinds) for p in module.parameters()}
    found, _ = trained_groups(backbone, Recipe(), Optim(groups=groups(("norms", {"weight_decay": 0}))))
    assert {id(p) for p in found[1]["params"]} == expected


def test_norms_of_other_libraries_are_norms():
    class RmsNorm(nn.Module):  # timm's own is no subclass of torch's
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

    class NormLinear(nn.Linear):  # a layer of unit weights, which normalises nothing that it learns
        pass

    backbone = nn.Sequential(NormLinear(6, 5, bias=False), RmsNorm())
    found, _ = trained_groups(backbone, Recipe(), Optim(groups=groups(("norms", {"weight_decay": 0}))))
    assert members(found, backbone) == [["0.weight"], ["1.weight"]]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh())


class Scaled(Recipe):
    def __init__(self, backbone):
        super().__init__()
        self.network_of = backbone
        self.scale = nn.Parameter(torch.ones(3))


def test_the_first_that_matches_takes_a_parameter():
    backbone = Small()
    rules = groups(("norms", {"lr": 2.0}), ("biases", {"lr": 3.0}), ("last.*", {"lr": 5.0}), ("recipe.s*", {"lr": 7.0}))
    recipe = Scaled(backbone)
    own, others = trained_groups(backbone, recipe, Optim(groups=rules, backbone_lr=0.5))
    assert members(own, backbone) == [["first.weight"], ["norm.weight", "norm.bias"], ["first.bias", "last.bias"],
                                      ["last.weight"]]  # fmt: skip
    assert [group["lr_scale"] for group in own] == [0.5, 1.0, 1.5, 2.5]
    assert [group["params"] for group in others] == [[recipe.scale]] and others[0]["lr_scale"] == 7


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([("layer9.*", {})], r"optim.groups.0: layer9.\* matches no trained parameter .* such as first.weight"),
        ([("norms", {}), ("norm.*", {})], "optim.groups.1: norm.* matches no trained parameter that is left to it"),
        ([("First.*", {})], "optim.groups.0"),
    ],
)
def test_a_group_without_parameters_is_an_error(rules, words):
    with pytest.raises(ValueError, match=words):
        trained_groups(Small(), Recipe(), Optim(groups=groups(*rules)))


@pytest.mark.parametrize(("name", "options"), [("vit_t", {"registers": 4}), ("transface_t", {})])
def test_layers_of_a_vit(name, options):
    """A share of the rate for each parameter, by a list made by hand for its twelve blocks."""
    backbone = create_model(name, 16, 36, **options)
    optim = Optim(layer_decay=0.5, backbone_lr=0.1, groups=groups(("norms", {"weight_decay": 0, "lr": 3})))
    found, _ = trained_groups(backbone, Recipe(), optim)
    shares = {id(p): group["lr_scale"] for group in found for p in group["params"]}
    starts = {"patch_embed": 13, "pos_embed": 13, "register_tokens": 13, **{f"blocks.{i}": 12 - i for i in range(12)}}
    starts |= {"norm": 0, "feature": 0, "mask_token": 0, "senet": 0}
    norms = {id(p) for m in backbone.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm1d)) for p in m.parameters()}
    for key, parameter in backbone.named_parameters():
        (behind,) = [n for start, n in starts.items() if key == start or key.startswith(f"{start}.")]
        assert shares[id(parameter)] == pytest.approx(0.1 * 0.5**behind * (3 if id(parameter) in norms else 1)), key
    assert all(("weight_decay" in group) == (id(group["params"][0]) in norms) for group in found)


def test_a_backbone_without_layers():
    with pytest.raises(ValueError, match="optim.layer_decay needs a backbone that names its layers"):
        trained_groups(Small(), Recipe(), Optim(layer_decay=0.9))


RULES = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {"lr": 0.1, "weight_decay": 0.05}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 0.1}, {"lr": 0.01, "weight_decay": 0.2}),
    "adam": (torch.optim.Adam, {"amsgrad": True}, {"lr": 0.01, "weight_decay": 0.02}),
    "nadam": (torch.optim.NAdam, {"momentum_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.02}),
    "radam": (torch.optim.RAdam, {"betas": (0.5, 0.6)}, {"lr": 0.01, "weight_decay": 0.02}),
    "adamax": (torch.optim.Adamax, {}, {"lr": 0.01, "weight_decay": 0.02}),
    "adafactor": (torch.optim.Adafactor, {"eps": (1e-6, 0.1)}, {"lr": 0.01, "weight_decay": 0.2}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.02}),
    "adadelta": (torch.optim.Adadelta, {"rho": 0.5}, {"lr": 0.1, "weight_decay": 0.02}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.8}, {"lr": 0.01, "weight_decay": 0.02}),
    "asgd": (torch.optim.ASGD, {"t0": 2}, {"lr": 0.01, "weight_decay": 0.02}),
}


@pytest.mark.parametrize("name", RULES)
def test_steps_are_those_of_torch_optim(name):
    """Six steps in float64 at falling rates; theirs with lists of parameters made by hand."""
    kind, options, values = RULES[name]
    torch.manual_seed(0)
    ours, theirs = Small().double(), Small().double()
    theirs.load_state_dict(ours.state_dict())
    rules = groups(("norms", {"weight_decay": 0}), ("last.*", {"lr": 0.1, "weight_decay": 0.3}))
    optim = Optim(name=name, groups=rules, backbone_lr=0.5, **values, **options)
    optimizer = create_optimizer(trained_groups(ours, Recipe(), optim)[0], optim)
    reference = kind(
        [
            {"params": list(theirs.first.parameters())},
            {"params": list(theirs.norm.parameters()), "weight_decay": 0.0},
            {"params": list(theirs.last.parameters()), "weight_decay": 0.3},
        ],
        **options,
        **values,
    )
    same_steps(ours, optimizer, theirs, reference, values["lr"], (0.5, 0.5, 0.05))


def same_steps(ours, optimizer, theirs, reference, base, shares):
    """Six of each, at falling rates of which the reference's groups have ``shares``."""
    x, target = torch.randn(2, 8, 6, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    for step in range(6):
        lr = base * (1 - step / 6)
        set_learning_rate(optimizer, lr)
        for group, share in zip(reference.param_groups, shares):
            group["lr"] = lr * share
        for network, rule in ((ours, optimizer), (theirs, reference)):
            (network(x[step % 2]) - target).square().sum().backward()
            rule.step()
            rule.zero_grad()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14), key


class Both:
    """Two optimisers as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def test_muon_takes_the_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    ours, theirs = Small().double(), Small().double()
    theirs.load_state_dict(ours.state_dict())
    rules = groups(("last.*", {"lr": 0.1, "weight_decay": 0.3}))
    optim = Optim(name="muon", groups=rules, lr=0.02, weight_decay=0.2, momentum=0.8, betas=(0.7, 0.8), ns_steps=3)
    optimizer = create_optimizer(trained_groups(ours, Recipe(), optim)[0], optim)
    first, norm, last = theirs.first, theirs.norm, theirs.last
    muon = torch.optim.Muon(
        [{"params": [first.weight]}, {"params": [last.weight], "weight_decay": 0.3}],
        weight_decay=0.2, momentum=0.8, ns_steps=3, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        [{"params": [first.bias, norm.weight, norm.bias]}, {"params": [last.bias], "weight_decay": 0.3}],
        weight_decay=0.2, betas=(0.7, 0.8),
    )  # fmt: skip
    same_steps(ours, optimizer, theirs, Both(muon, adamw), 0.02, (1, 0.1, 1, 0.1))


def test_every_optimiser_of_torch_is_in_the_table_or_refused():
    theirs = {name.lower() for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"optimizer"}
    assert {*OPTIMIZERS, *REFUSED} == theirs and not {*OPTIMIZERS} & {*REFUSED}
    assert {*RULES, "muon", "rprop"} == {*OPTIMIZERS}


@pytest.mark.parametrize("name", [*RULES, "muon"])
def test_state_goes_by_names_from_one_grouping_to_another(name):
    """What a checkpoint holds is taken up by an optimiser with other groups, whose values stay."""
    torch.manual_seed(0)
    network, rules = Small(), groups(("norms", {"weight_decay": 0}), ("last.*", {"lr": 0.1}))

    def optimizer(*rules):
        optim = Optim(name=name, groups=rules)
        return create_optimizer(trained_groups(network, Recipe(), optim)[0], optim)

    first, second = optimizer(*rules), optimizer(*groups(("biases", {"weight_decay": 0.7})))
    network(torch.randn(8, 6)).square().sum().backward()
    first.step()
    OptimizerState(network, second).load_state_dict(OptimizerState(network, first).state_dict())
    for parameter in network.parameters():
        for key, value in first.state[parameter].items():
            assert torch.equal(second.state[parameter][key], value)
    assert all(value.abs().sum() > 0 for value in second.state[network.last.weight].values())
    decays = [5e-4, 5e-4, 0.7] if name == "muon" else [5e-4, 0.7]  # one for matrices, one for others
    assert [group["weight_decay"] for group in second.param_groups] == decays
    assert {group["lr_scale"] for group in second.param_groups} == {1}
    second.step()


@pytest.mark.slow
def test_a_run_with_muon_goes_on(config, finish, tmp_path):
    """Its centres by Lion at a rate of their own."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rules = ["optim={name: muon, lr: 0.01, betas: [0.8, 0.9]}", "head.optim={name: lion, lr: 0.1}"]
    every = ["schedule={epochs: 1.34, name: constant}", *rules]
    finish(config, f"output={whole}", *every)
    finish(config, f"output={parts}", *every, "schedule.epochs=0.67")
    finish(config, f"output={parts}", *every)
    close(curve(parts), curve(whole))
    assert all(torch.allclose(value, learnt(whole)[name], atol=1e-5) for name, value in learnt(parts).items())


GROUPS = "optim.groups=[{match: layers.0.*, lr: 0.5}, {match: biases, weight_decay: 0}]"


def test_runs_go_on_with_their_groups(config, finish, tmp_path):
    """After half of the steps, on two ranks instead of one; then with other groups, which is told."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = ["schedule={epochs: 1.34, name: constant}", "optim.weight_decay=0.1"]
    finish(config, f"output={whole}", *every, GROUPS)
    finish(config, f"output={parts}", *every, GROUPS, "schedule.epochs=0.67")
    said = finish(config, f"output={parts}", *every, GROUPS, "data.batch_size=8", ranks=2)
    assert "resuming at step 4" in said and "optim.groups" not in said
    close(curve(parts), curve(whole))
    assert all(torch.allclose(value, learnt(whole)[name], atol=1e-4) for name, value in learnt(parts).items())
    said = finish(config, f"output={parts}", *every, "schedule.epochs=2", "optim.groups=[{match: biases, lr: 2}]")
    now = "[{'match': 'biases', 'weight_decay': None, 'lr': 2.0}]"
    assert re.search(rf"has changed at step 8: .*optim.groups from .*layers.0.*to {re.escape(now)}", said)
