"""Memory of a whole step: against sums by hand, and against what torch allocates in a real one."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.plan import allocated, planned
from tests.train.planning.support import config
from train.planning.step import Memory, Setting, StepTrace, chosen_tile, head_rows, trace_classifier, trace_step

GIB = 2**30


def gpu(ranks=1, identities=100_000, memory=80 * GIB):
    return Setting(gpu=True, memory=memory, ranks=ranks, identities=identities)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for identity in range(4):
        (folder / f"{identity}").mkdir()
        for image in range(8):
            pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{identity}" / f"{image}.jpg")
    return folder


@pytest.mark.parametrize(
    ("name", "rate", "optimizer"), [("r18", 1.0, "sgd"), ("vit_t", 0.1, "adamw")], ids=["r18 full", "vit_t sampled"]
)
def test_a_real_step_takes_what_was_planned(tmp_path, faces, name, rate, optimizer):
    identities = 5_000
    settled = config(
        {"name": name, "input_size": 45},
        {"sample_rate": rate, "num_classes": identities},
        {"train": str(faces), "batch_size": 8, "threads": 1, "prefetch": 2},
        optim={"name": optimizer, "lr": 0.001},
        output=str(tmp_path / "run"),
    )
    assert allocated(settled) == pytest.approx(planned(settled, identities), rel=0.1)


def test_centres_and_their_optimiser_by_hand():
    def built(ranks, **sections):
        left = trace_classifier(config({"name": "mbf"}, **sections), gpu(ranks))["build"].left
        return left["centres"], left["optimiser of the centres"]

    assert built(8) == (12_500 * 512 * 4, 12_500 * 512 * 4)
    assert built(3)[0] == 33_334 * 512 * 4
    assert built(1, optim={"name": "adamw", "lr": 1}) == (100_000 * 512 * 4, 100_000 * (2 * 512 + 1) * 4)


def test_products_of_the_head_by_hand():
    settled = config({"name": "mbf"}, {"tile": 1280}, {"batch_size": 64})
    phases = trace_classifier(settled, gpu(ranks=4))
    one = 2 * 256 * 25_000 * 512  # rows of the global batch, centres of a rank, numbers of each
    first = 2 * 256 * 1280 * 512  # of the tile whose numbers a GPU keeps
    flops = {name: sum(work.flops for work in phase.work) for name, phase in phases.items()}
    assert flops["forward"] == one
    assert flops["backward"] == 2 * one - first
    assert flops["update"] == 2 * one - first


def test_a_sample_takes_its_share_of_the_products():
    full, sampled = (
        sum(
            work.flops
            for work in trace_classifier(config({"name": "mbf"}, {"sample_rate": rate}), gpu())["forward"].work
        )
        for rate in (1.0, 0.1)
    )
    assert sampled == pytest.approx(0.1 * full, rel=0.1)


def test_rows_and_tiles():
    twice = config({"name": "r18"}, recipe={"name": "contraface"})
    assert head_rows(config({"name": "r18"}), 4) == 32 and head_rows(twice, 4) == 64
    assert chosen_tile(config({"name": "r18"}, {"tile": 77}), gpu()) == 77
    assert chosen_tile(config({"name": "r18"}), gpu()) % 128 == 0
    assert chosen_tile(config({"name": "r18"}), Setting(False, GIB, 1, 1000)) == 2**17


def test_a_head_that_the_recipe_does_without_is_kept_and_no_more():
    alone = config({"name": "mbf"}, recipe={"name": "distill", "teacher": "a.onnx", "margin": 0})
    phases = trace_classifier(alone, gpu(identities=100_000))
    assert phases["build"].left["centres"] == 100_000 * 512 * 4
    assert not any(phases[name].work for name in ("forward", "backward", "update"))


def test_the_moment_is_the_one_that_needs_most():
    trace = trace_step(config({"name": "mbf", "input_size": 32}), gpu(identities=1_000_000))
    assert isinstance(trace, StepTrace) and isinstance(trace.memory, Memory)
    assert trace.memory.moment in ("head", "centres' update")
    assert trace.memory.total == sum(trace.memory.parts.values())
    assert trace.memory.parts["centres"] == 1_000_000 * 512 * 4
    large = trace_step(config({"name": "mbf", "input_size": 64}, data={"batch_size": 64}), gpu(identities=100))
    assert large.memory.moment in ("forward", "backward")
