"""The ways that the loader is raced against give what they should."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.dataloaders import dataloaders
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import ENCODED, SIZE, decoded

COUNT = 12


@pytest.mark.parametrize("library", ["simplejpeg", "PIL"])
@pytest.mark.parametrize("way", ["usual", "best"])
def test_every_image_comes_once_an_epoch_mirrored_or_not(way, library, monkeypatch):
    if library == "PIL":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    else:
        pytest.importorskip(library)
    source = MemorySource(ENCODED[:COUNT], np.arange(COUNT))
    ways = dataloaders("missing", source, 4, workers=2, device=torch.device("cpu"), image_size=SIZE)
    name, batches = [*ways][-2 if way == "usual" else -1]
    assert library in name and ("shared memory" in name) == (way == "best")
    wanted = torch.stack([decoded(index) for index in range(COUNT)])
    seen, mirrored = [], 0
    for _ in range(COUNT // 4 * 8):  # more batches than a worker has places for
        for image in next(batches).float().sub(127.5).div(127.5):
            apart = torch.stack([(view - image).abs().mean((1, 2, 3)) for view in (wanted, wanted.flip(3))])
            assert apart.min() < 0.02
            seen.append(int(apart.min(0).values.argmin()))
            mirrored += int(apart.min(1).values.argmin())
    for epoch in range(8):
        assert sorted(seen[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))
    assert 20 < mirrored < 76
    batches.close()
