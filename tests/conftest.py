"""Fixtures of the whole suite: where reference material lies, and a pool of gloo ranks."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.processes import start_server
from tests.ranks import RankPool

SHARED = Path(__file__).resolve().parents[2] / "shared"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
settings.register_profile("shared machine", deadline=None)  # a slow moment is no failure
settings.load_profile("shared machine")


def _declared_operators() -> torch.library.Library | None:
    """Let timm be imported where torchvision's operators cannot be loaded.

    A torchvision for CUDA, as PyPI has it, cannot load them beside a torch for processors; it cannot be imported then,
    for it gives two of them other implementations. timm imports it and calls neither.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


OPERATORS = _declared_operators()  # they are there as long as this is


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
    start_server()
    pool = RankPool()
    yield pool
    pool.close()
