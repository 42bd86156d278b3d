"""Reference values for the backbones."""

import gzip
import json
import sys

import pytest


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
