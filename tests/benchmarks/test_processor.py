"""The step on a CPU, each way a run under torchrun."""

import os
import sys

import pytest
import torch

from benchmarks.processor import CORES, ROOT, WAYS, one_run, shares
from pipelines.common.errors import UserError
from pipelines.synthetic.dataset import make_dataset

SMALL = ["data.batch_size=8", "model.input_size=32", "model.embedding_size=32", "device=cpu"]


def test_the_ways_are_called_by_what_they_are():
    assert WAYS["one process"] == (1, ["precision=fp32", "model.compile=false"])
    assert WAYS["a process a core, bf16, compiled"] == (CORES, ["precision=bf16", "model.compile=true"])
    assert len(WAYS) == 8


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    data = tmp_path_factory.mktemp("processor") / "data"
    make_dataset(data, identities=12, images_per_identity=4, held_out=20, processes=1)
    return [*SMALL, f"data.train={data}"]


def test_shares_are_of_the_whole_step(overrides):
    found = shares(ROOT / "configs/quickstart.yaml", overrides)
    assert sum(found.values()) == pytest.approx(1)
    assert all(found[kind] > 0 for kind in ("convolution", "batch norm", "PReLU", "optimiser", "products of matrices"))
    assert found["compiled loops"] == 0
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))  # as the run has settled


def test_a_run_under_torchrun_says_its_speed(overrides):
    config = ["--config", str(ROOT / "configs/quickstart.yaml")]
    assert one_run([*config, *overrides], 2, ROOT) > 0


def test_a_run_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")  # which fails at once
    with pytest.raises(UserError, match="ended with status 1"):
        one_run([], 1, ROOT)
