"""Reference values for the backbones."""

import gzip
import json
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml

from tests.models.support import CENTRES, small


@pytest.fixture(scope="session")
def manifest(shared):
    """Names and shapes of the tensors, parameters and GMAC of the published backbones, by family and backbone."""
    with gzip.open(shared / "reference" / "state_dicts.json.gz") as file:
        return json.load(file)


@pytest.fixture(scope="session")
def fill(shared):
    """The module that makes the weights and images behind the reference embeddings."""
    sys.path.insert(0, str(shared / "reference"))
    try:
        import fill
    finally:
        sys.path.pop(0)
    return fill


@pytest.fixture
def checkpoint(tmp_path):
    """A sharded checkpoint in a run's folder, and the backbone in it."""
    model = small()
    state = {"backbone": model.state_dict(), "head": {"weight": CENTRES}, "step": 3, "best": torch.tensor(0.5)}
    folder = tmp_path / "checkpoints" / "step_000000003"
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": dict(name="mbf", width=0.25, embedding_size=32, input_size=32, compile=False)})
    )
    return folder, model
