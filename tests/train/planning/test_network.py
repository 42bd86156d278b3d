"""The trace of a backbone's step against sums by hand, and how it depends on batch and recomputation."""

import pytest

from models.registry import BACKBONES
from pipelines.common.errors import UserError
from tests.train.planning.support import Perceptron, config
from train.planning.network import trace_network

PERCEPTRON = {"name": "perceptron", "embedding_size": 16, "input_size": 8}
BATCH, PIXELS, HIDDEN, SIZE = 8, 3 * 8 * 8, 32, 16


@pytest.fixture(autouse=True)
def perceptron(monkeypatch):
    monkeypatch.setitem(BACKBONES, "perceptron", Perceptron)


def work(phase, what):
    return sum(getattr(each, what) for each in phase.work)


def test_a_perceptron_by_hand():
    trace = trace_network(config(PERCEPTRON), BATCH, gpu=False)
    phases, weights = trace.phases, PIXELS * HIDDEN + HIDDEN * SIZE
    assert trace.parameters == weights
    assert phases["build"].left == {"weights": 4 * weights, "optimiser": 4 * weights, "images": 4 * BATCH * PIXELS}
    # Images channels-last are copied to be flattened; the hidden layer is there before and behind the ReLU for a while.
    kept = BATCH * (PIXELS + HIDDEN + SIZE)
    assert phases["forward"].left["activations"] == 4 * kept
    assert phases["forward"].peak["activations"] == 4 * BATCH * (PIXELS + 2 * HIDDEN)
    assert phases["backward"].left["gradients"] == 4 * weights and "activations" not in phases["backward"].left
    assert work(phases["forward"], "flops") == 2 * BATCH * weights
    assert work(phases["backward"], "flops") == 2 * BATCH * (weights + HIDDEN * SIZE)  # images need no gradient
    assert "gradients" not in phases["update"].left


def test_what_is_frozen_takes_neither_gradients_nor_state():
    trace = trace_network(config(PERCEPTRON | {"freeze": ["first.*"]}), BATCH, gpu=False)
    build, backward = trace.phases["build"].left, trace.phases["backward"]
    last = HIDDEN * SIZE
    assert trace.parameters == last and backward.left["gradients"] == build["optimiser"] == 4 * last
    assert build["weights"] == 4 * (PIXELS * HIDDEN + last)
    assert work(backward, "flops") == 2 * BATCH * last


def test_a_margin_that_sees_norms_has_their_scale_trained():
    """The weight of an iresnet's last batch norm: a number a dimension, its gradient and its momentum."""
    model = {"name": "r18", "width": 0.125, "embedding_size": 16, "input_size": 32}
    plain, seen = (trace_network(config(model, {"margin": name}), 2, gpu=False) for name in ("cosface", "magface"))
    gradients = [each.phases["backward"].left["gradients"] for each in (plain, seen)]
    assert gradients[1] - gradients[0] == 4 * 16


def test_lora_trains_few_numbers():
    trace = trace_network(config(PERCEPTRON | {"lora": {"rank": 2}}), BATCH, gpu=False)
    updates = 2 * (PIXELS + HIDDEN) + 2 * (HIDDEN + SIZE)
    assert trace.parameters == updates
    assert trace.phases["build"].left["optimiser"] == 4 * updates


def test_gradients_that_stay_are_there_all_the_time():
    phases = trace_network(config(PERCEPTRON), BATCH, gpu=False, keep_gradients=True).phases
    assert {phase.left["gradients"] for phase in phases.values()} == {4 * (PIXELS * HIDDEN + HIDDEN * SIZE)}


def test_adamw_keeps_two_numbers_a_weight_and_a_count():
    adamw = config(PERCEPTRON, optim={"name": "adamw", "lr": 0.01})
    left = trace_network(adamw, BATCH, gpu=False).phases["build"].left
    assert left["optimiser"] == 2 * left["weights"] + 2 * 4


def test_averaged_weights_are_there_all_the_time():
    """And once more while they move, in the room of the gradients where these do not stay."""

    def trace(ema, keep):
        given = config(PERCEPTRON, optim={"name": "sgd", "lr": 0.01, "ema": ema})
        return trace_network(given, BATCH, gpu=False, keep_gradients=keep).phases

    for keep in (False, True):
        plain, averaging = trace(None, keep), trace(0.999, keep)
        size = plain["build"].left["weights"]
        assert all(phase.left["averaged weights"] == size for phase in averaging.values())
        more = sum(averaging["update"].peak.values()) - sum(plain["update"].peak.values())
        assert more == pytest.approx(2 * size if keep else size, rel=0.01)
        # Three operations read two, one and two numbers for each that they write.
        assert work(averaging["update"], "bytes") - work(plain["update"], "bytes") == pytest.approx(8 * size, rel=0.01)


@pytest.mark.parametrize(("name", "gpu"), [("mbf", True), ("r18", False), ("vit_t", True)])
def test_memory_and_work_grow_evenly_with_the_batch(name, gpu):
    setting = config({"name": name, "input_size": 36}, precision="bf16" if gpu else "fp32")
    small, middle, large = (trace_network(setting, batch, gpu=gpu).phases for batch in (32, 64, 96))
    one, two, three = (each["forward"].left["activations"] for each in (small, middle, large))
    assert three - two == two - one > 0
    for phase in ("forward", "backward"):
        one, two, three = (sum(each[phase].peak.values()) for each in (small, middle, large))
        assert three - two == pytest.approx(two - one, rel=0.03)  # not the same tensors are most for every batch
        assert work(large[phase], "flops") == pytest.approx(3 * work(small[phase], "flops"), rel=1e-6)
        assert work(large[phase], "kernels") == work(small[phase], "kernels")


def test_recomputation_keeps_a_fraction_and_takes_a_third_more():
    setting = config({"name": "vit_t"}, precision="bf16")
    kept, again = (
        trace_network(setting, 16, gpu=True, checkpoint_activations=switch).phases for switch in (False, True)
    )
    assert again["forward"].left["activations"] < 0.25 * kept["forward"].left["activations"]
    assert work(again["forward"], "flops") == work(kept["forward"], "flops")
    more = work(again["backward"], "flops") / work(kept["backward"], "flops")
    assert more == pytest.approx(1.5, abs=0.05)  # the backward pass is twice the forward one


def test_half_precision_halves_what_a_gpu_keeps_of_convolutions():
    full, half = (
        trace_network(config({"name": "r18", "input_size": 64}, precision=precision), 32, gpu=True).phases
        for precision in ("fp32", "bf16")
    )
    kept = [phases["forward"].left["activations"] for phases in (full, half)]
    copies = 2 * trace_network(config({"name": "r18", "input_size": 64}), 2, gpu=True).parameters  # of weights, in bf16
    assert kept[1] - copies == pytest.approx(kept[0] / 2, rel=0.05)
    assert {each.precision for each in half["forward"].work if each.flops} == {"bf16"}


def test_a_recipe_with_two_views_has_both():
    once = trace_network(config({"name": "r18", "input_size": 36}), 8, gpu=True).phases
    twice = trace_network(config({"name": "r18", "input_size": 36}, recipe={"name": "contraface"}), 8, gpu=True).phases
    last = 2 * 8 * 512 * 3 * 3 * 512  # the layer behind the dropout
    assert work(twice["forward"], "flops") - work(once["forward"], "flops") == last


def test_a_second_pass_of_a_share_of_the_images():
    model = {"name": "transface_t", "mask_ratio": 0.0}
    plain, perturbing = (
        trace_network(config(model, recipe={"name": "transface", "probability": share}), 8, gpu=True).phases
        for share in (0.0, 0.5)
    )
    assert work(perturbing["forward"], "flops") == pytest.approx(1.5 * work(plain["forward"], "flops"), rel=1e-3)
    assert perturbing["forward"].left == plain["forward"].left


def test_a_backbone_that_looks_at_its_numbers_has_no_plan(monkeypatch):
    class Choosy(Perceptron):
        def forward(self, images):
            return super().forward(images if images.mean().item() > 0 else -images)

    monkeypatch.setitem(BACKBONES, "choosy", Choosy)
    with pytest.raises(UserError, match="choosy cannot be traced without data"):
        trace_network(config({**PERCEPTRON, "name": "choosy"}), 8, gpu=True)
