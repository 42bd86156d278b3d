"""Foreign and mutated images among sound ones, through all that decodes: named or read, and never the process's end."""

import multiprocessing
import os
import re
import threading
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.common.alignment import TEMPLATE
from pipelines.loading.aligned import read_aligned
from pipelines.loading.loader import Loader, read_once
from pipelines.prepare.check import check
from pipelines.sources.memory import MemorySource
from tests.pipelines.kinds import SIDE, foreign, kinds
from tests.pipelines.mutation import mutate

BATCH = 64
BAD = 8  # mutants and foreign files in a batch; the first rows are the most dangerous ones
MEMORY = 2 << 20  # KiB that the process may take in all


def run_fuzz(count, seed, log):
    """Runs in a process of its own. What decoders print is of no interest; a failure goes to the file ``log``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        fuzz(count, seed)
    except BaseException:
        log.write_text(traceback.format_exc())
        raise


def fuzz(count, seed):
    """Beside a thread that keeps a core busy."""
    warnings.simplefilter("ignore")
    threading.Thread(target=_busy, daemon=True).start()
    generator = np.random.default_rng(seed)
    images = list(kinds().values())
    expected = pixels_of(images)
    strange = list(foreign().values())
    read = named = 0
    for number in range(-(-count // BAD)):
        rows = generator.integers(0, len(images), BATCH)
        batch = [images[row] for row in rows]
        changed = np.unique(np.concatenate([[0], generator.integers(0, BATCH, BAD - 1)]))
        for at in changed:
            batch[at] = _strange(strange, images, generator)
        source = MemorySource(batch, np.arange(BATCH))
        match number % 4:
            case 0:
                loader = Loader(source, batch_size=BATCH, seed=0, image_size=SIDE, shuffle="none", augment="none",
                                dtype=torch.uint8, max_bad_fraction=1)  # fmt: skip
                trained = next(loader)
                loader.close()
                same = trained.indices == torch.arange(BATCH)
                named, read = named + int((~same).sum()), read + int(same[changed].sum())
                sound = np.setdiff1d(np.arange(BATCH), changed)
                assert same[sound].all()
                assert torch.equal(trained.images[sound], expected[rows[sound]])
            case 1:
                report = check(source, threads=2)
                assert set(report.problems["unreadable"]) <= set(changed.tolist())
            case 2:
                _swept(list, read_once(source, np.arange(BATCH), batch_size=BATCH, image_size=SIDE))
            case 3:
                _aligned(batch)
    assert read and named
    # Not getrusage, whose peak counts the process that this one was started from.
    assert int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) < MEMORY


def pixels_of(images):
    sound = MemorySource(images)
    (batch,) = read_once(sound, np.arange(len(images)), batch_size=len(images), image_size=SIDE, dtype=torch.uint8)
    return batch.images


def _strange(strange, images, generator):
    if generator.random() < 0.2:
        return strange[generator.integers(len(strange))]
    return mutate(images[generator.integers(len(images))], generator)


def _swept(consume, batches):
    try:
        consume(batches)
    except (ValueError, OSError) as error:
        assert str(error) and "\n" not in str(error)


def _aligned(batch):
    landmarks = np.tile(np.stack([TEMPLATE.real, TEMPLATE.imag], 1), (len(batch), 1, 1))
    indices = np.arange(len(batch))
    _swept(list, read_aligned(MemorySource(batch), indices, batch_size=BATCH, landmarks=landmarks.__getitem__))


def _busy():
    numbers = np.arange(1 << 20)[::-1].copy()
    while True:
        np.sort(numbers)  # without Python's lock


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_images(count, tmp_path):
    log = tmp_path / "log"
    process = multiprocessing.get_context("spawn").Process(target=run_fuzz, args=(count, 11, log))
    process.start()
    process.join(60 + count / 10)
    alive = process.is_alive()
    process.kill()
    assert not alive, "it hangs"
    assert process.exitcode == 0, log.read_text() if log.exists() else process.exitcode
