"""The synthetic data set: procedural faces to train on and held-out identities to verify, without a download.

Its folder holds ``train.rec``, ``train.idx`` and ``property`` (insightface's layout), ``heldout.bin`` (pairs of
identities that are not in the training set), ``faces.png`` (to look at: a row an identity) and ``settings.json``. It
appears as a whole when all is written; a set made before with the same settings is left alone. Any number of processes
writes the same bytes.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.new_folder import clear, new_folder
from pipelines.common.progress import with_progress
from pipelines.common.sheets import sheet
from pipelines.sources.bins import write_bin
from pipelines.sources.recordio_writer import write_dataset
from pipelines.synthetic import faces

FILES = ("train.rec", "train.idx", "property", "heldout.bin", "faces.png", "settings.json")
FOLDS = 10
HELD_OUT_IMAGES = 6  # of each held-out identity; even, so that they make pairs
_ROWS, _COLUMNS = 10, 12  # of faces.png: identities, and photographs of each


def make_dataset(
    folder: str | Path,
    *,
    identities: int = 1000,
    images_per_identity: int = 16,
    held_out: int = 300,
    seed: int = 2048,
    processes: int | None = None,
) -> bool:
    """Write the data set unless it is there. Returns whether it had to be written.

    ``processes`` defaults to the CPUs this process may use. Raises ``ValueError`` for counts that make no data set, and
    where ``folder`` holds anything else than this very set, or another process is writing it.
    """
    folder = Path(folder)
    if identities < 2 or images_per_identity < 1:
        raise UserError(f"{identities} identities of {images_per_identity} images cannot be trained on")
    if held_out % FOLDS or held_out < 2 * FOLDS:
        raise UserError(f"{held_out} held-out identities do not make {FOLDS} folds: give 20, 30, 40, ...")
    settings = {
        "identities": identities,
        "images_per_identity": images_per_identity,
        "held_out": held_out,
        "seed": seed,
    }
    if _is_there(folder, settings):
        return False
    with new_folder(folder) as partial:
        clear(partial)
        try:
            counts = [images_per_identity] * identities + [HELD_OUT_IMAGES] * held_out
            with _photographs(seed, counts, processes) as people:
                write_dataset(partial, islice(people, identities), image_size=faces.SIZE)
                write_bin(partial / "heldout.bin", *pair(list(people)))
            pictures = [[faces.render(seed, identity, image) for image in range(_COLUMNS)] for identity in range(_ROWS)]
            sheet(pictures).save(partial / "faces.png")
            (partial / "settings.json").write_text(json.dumps(settings))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # there is nothing to go on with
            raise
    return True


def _is_there(folder: Path, settings: Mapping[str, int]) -> bool:
    """Whether the folder holds the very set of these settings; ``UserError`` where it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not all((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder} holds something else or an incomplete set; remove it or name another folder")
    try:
        existing = json.loads((folder / "settings.json").read_text())
    except ValueError:  # no text, or no JSON
        existing = "settings that cannot be read"
    if existing != settings:
        raise UserError(f"{folder} holds a set made with {existing}; remove it or name another folder")
    return True


@contextmanager
def _photographs(seed: int, counts: Sequence[int], processes: int | None) -> Iterator[Iterator[list[bytes]]]:
    """The photographs of one identity after the other, drawn by ``processes``, which end with the block."""
    executor = ProcessPoolExecutor(
        processes or len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), _end_with_parent
    )
    try:
        drawn = executor.map(_draw, [seed] * len(counts), range(len(counts)), counts)
        with closing(with_progress(drawn, "drawing photographs", sum(counts))) as people:
            yield people
    finally:
        executor.shutdown(cancel_futures=True)


def pair(people: Sequence[Sequence[bytes]]) -> tuple[list[bytes], np.ndarray]:
    """Pairs for ten folds in order, no identity in two of them: images (2P), the same person? (P,) bool.

    ``people``: the images of each identity, as many and an even number of each. Every image is once in a genuine pair
    and once in an impostor pair.
    """
    images: list[bytes] = []
    same: list[bool] = []
    for fold in np.array_split(np.arange(len(people)), FOLDS):
        for genuine in (True, False):
            for i, person in enumerate(fold):
                for k in range(0, len(people[person]), 2):
                    # the partner's distance along the fold changes with k, and is never a whole turn
                    partner = person if genuine else fold[(i + 1 + k // 2 % (len(fold) - 1)) % len(fold)]
                    images += people[person][k], people[partner][k + 1]
                    same.append(genuine)
    return images, np.array(same)


def _draw(seed: int, identity: int, count: int) -> list[bytes]:
    return [faces.encode(seed, identity, image) for image in range(count)]


def _end_with_parent() -> None:
    """Let a worker die with its parent, even a killed one, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
