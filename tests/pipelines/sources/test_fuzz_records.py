"""Mutated ``.rec``, ``.idx`` and ``property`` files: an error or images, never a crash, a hang or much memory."""

import multiprocessing
import resource
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources.recordio_writer import write_dataset
from tests.pipelines.mutation import mutate

MEMORY = 1 << 30  # bytes of address space beyond what is in use at the start


def fuzz(count, seed):
    """Runs in a process of its own, which may neither grow nor take long."""
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    generator = np.random.default_rng(seed)
    outcomes = {True: 0, False: 0}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_dataset(folder, [[generator.bytes(60 + 8 * n) for n in range(size)] for size in (3, 1, 4)])
        names = ["train.rec", "train.idx", "property"]
        sound = {name: (folder / name).read_bytes() for name in names}
        for _ in range(count):
            touched = generator.choice(names, 2, p=[0.5, 0.4, 0.1])
            for name in names:
                (folder / name).write_bytes(mutate(sound[name], generator) if name in touched else sound[name])
            (folder / "train.cache.npz").unlink(missing_ok=True)
            try:
                read(open_source(folder))
                outcomes[True] += 1
            except (ValueError, OSError) as error:
                assert str(error)
                outcomes[False] += 1
    assert min(outcomes.values()) > count / 50  # both happen


def read(source):
    indices = np.arange(len(source))
    source.prefetch(indices)
    source.labels(indices)
    for index in indices:
        assert source.describe(index)
    source.read(indices)


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files(count):
    process = multiprocessing.get_context("spawn").Process(target=fuzz, args=(count, 7))
    process.start()
    process.join(30 + count / 20)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert not alive and process.exitcode == 0
