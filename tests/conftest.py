"""Fixtures of the whole suite: where reference material lies, and a pool of gloo ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.ranks import RankPool

SHARED = Path(__file__).resolve().parents[2] / "shared"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
torch.set_num_threads(2)
settings.register_profile("shared machine", deadline=None)  # a slow moment is no failure
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values and real faces; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no reference folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Run a function on several gloo ranks: ``ranks(world_size, function, *args) -> [result of each rank]``."""
    pool = RankPool()
    yield pool
    pool.close()
