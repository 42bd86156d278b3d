"""The IJB-C protocols on a synthetic set of full size, stage by stage, beside the straightforward way.

The straightforward way is that of the published scripts: one ``np.where`` a template and a media, float64 products of
the pairs' templates, scikit-learn's ``roc_curve``. Each way runs in a process of its own on the same features, which
lie in memory before the clock starts; peak memory is counted beside them. ``--extract`` measures the
extraction of features instead (`benchmarks.extraction`), ``--people`` ``evaluate.folders`` on so many images' features
(`benchmarks.own_people`). ``python -m benchmarks.evaluation --help``.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_curve
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from benchmarks import own_people
from benchmarks.extraction import measure, printed, write_noise
from benchmarks.measure import peak_memory
from benchmarks.results import Row, save, show
from benchmarks.synthetic_ijb import write_release
from evaluate.features.files import load_features
from evaluate.ijb import FARS, identification, tar_uncertainty
from evaluate.protocols.ijb_lists import IJB
from evaluate.protocols.resampling import RESAMPLES
from evaluate.protocols.roc import Roc
from evaluate.protocols.scores import error_bound, exact, pair_scores
from evaluate.protocols.templates import pool
from pipelines.common.command import at_least, run
from pipelines.common.cpu import keep_freed_memory


class Clock:
    """Wall time, processor time and peak memory of stages, as rows of a table."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.rows: list[Row] = []

    def __call__(self, stage: str, work: Callable[[], Any], held: int = 0) -> Any:
        """Run ``work``; ``held`` bytes were there before and are not counted."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        self.rows.append(
            {
                "stage": stage,
                "way": self.way,
                "seconds": round(time.perf_counter() - wall, 3),
                "processor_seconds": round(time.process_time() - processor, 3),
                "peak_gb": round((peak_memory(torch.device("cpu")) - held) / 1e9, 2),
            }
        )
        return result


def facemill(folder: Path) -> tuple[list[Row], dict[str, float]]:
    """The stages of ``evaluate.ijb``; its TAR by FAR."""
    keep_freed_memory()
    clock, data = Clock("facemill"), IJB(folder, "IJBC")
    images = clock("read image lists", data.images)
    first, second, same = clock("read pairs", data.pairs)
    features = np.array(load_features(folder / "features.npy", len(images.names)))
    held = features.nbytes
    templates = clock("pool", lambda: pool(features, images.template, images.media, images.detector), held)
    vectors = templates.vectors

    def score() -> np.ndarray:
        nonlocal first, second
        first, second = templates.index(first), templates.index(second)
        return pair_scores(vectors, first, second)

    scores = clock("score pairs", score, held)

    def rates() -> dict[str, float]:
        roc = Roc(scores, same, lambda i: exact(vectors, vectors, first[i], second[i]), error_bound(vectors.shape[1]))
        return {f"{far:g}": roc.at(far).tar for far in FARS}

    tar = clock("ROC", rates, held)
    clock(f"1:1 intervals, {RESAMPLES} resamples", lambda: tar_uncertainty(tar, scores, first, second, same), held)
    clock(
        "1:N, three galleries, with intervals", lambda: identification(templates, data.galleries(), data.probes()), held
    )
    return clock.rows, tar


def straightforward(folder: Path) -> tuple[list[Row], dict[str, float]]:
    """The same figures the usual way."""
    clock, data = Clock("straightforward"), IJB(folder, "IJBC")
    images = data.images()
    first, second, same = data.pairs()
    features = np.array(load_features(folder / "features.npy", len(images.names)))
    held = features.nbytes

    def pool_templates() -> tuple[np.ndarray, np.ndarray]:
        weighed = (features[:, 0] + features[:, 1]) * images.detector[:, None]
        ids = np.unique(images.template)
        vectors = np.zeros((len(ids), weighed.shape[1]))
        for row, template in enumerate(ids):
            (mine,) = np.where(images.template == template)
            media = images.media[mine]
            vectors[row] = sum(weighed[mine][np.where(media == one)[0]].mean(axis=0) for one in np.unique(media))
        return ids, normalize(vectors)

    def score() -> np.ndarray:
        row = np.zeros(ids.max() + 1, int)
        row[ids] = np.arange(len(ids))
        scores = np.empty(len(first))
        for start in range(0, len(first), 100_000):
            part = slice(start, start + 100_000)
            scores[part] = np.sum(vectors[row[first[part]]] * vectors[row[second[part]]], axis=1)
        return scores

    def rates() -> dict[str, float]:
        false, true, _ = roc_curve(same, scores)
        false, true = np.flipud(false), np.flipud(true)
        return {f"{far:g}": float(true[np.abs(false - far).argmin()]) for far in FARS}

    ids, vectors = clock("pool", pool_templates, held)
    scores = clock("score pairs", score, held)
    return clock.rows, clock("ROC", rates, held)


def people(images: int) -> list[Row]:
    """1:1 and 1:N of ``evaluate.folders``, on features of so many images."""
    keep_freed_memory()
    clock = Clock("facemill")
    own_people.measure(images, clock)
    return [{"images": images} | row for row in clock.rows]


def alone(way: Callable[[Any], Any], argument: Any, threads: int) -> Any:
    """Call ``way`` with its argument in a fresh process with so many threads for torch and numpy."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool_of_one:
        return pool_of_one.apply(_limited, (way, argument, threads))


def _limited(way: Callable[[Any], Any], argument: Any, threads: int) -> Any:
    with threadpool_limits(threads):
        return way(argument)


def extraction(folder: Path, networks: list[str], count: int, batch_size: int, threads: int) -> list[Row]:
    """A row for each network; the release in ``folder`` is written where it has no images."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # a fresh network's activations fade into them, which are slow
    if not (folder / "IJBC" / "loose_crop").exists():
        write_noise(folder)
    data = IJB(folder, "IJBC")
    return [measure(name, data, count, batch_size=batch_size, threads=threads) for name in networks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of IJB-C's size; 1 needs 2 GB of disk")
    parser.add_argument(
        "--folder", type=Path, help="where the set lies or will be written; default: removed afterwards"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--extract", action="store_true", help="measure the extraction of features, not the protocols")
    parser.add_argument(
        "--people", type=at_least(100), nargs="+", metavar="IMAGES", help="measure 1:1 and 1:N of so many images"
    )
    parser.add_argument(
        "--networks", nargs="+", default=["mbf"], help="to extract with: checkpoints or backbones' names"
    )
    parser.add_argument("--images", type=at_least(1), default=512, help="how many are extracted")
    parser.add_argument("--batch-size", type=at_least(1), default=128)
    args = parser.parse_args()
    if args.people:
        rows = [row for images in args.people for row in alone(people, images, args.threads)]
        show(rows, "One's own people, all with intervals")
        print(f"written: {save('own_people', rows)}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.extract:
            rows = extraction(folder, args.networks, args.images, args.batch_size, args.threads)
            show([printed(row) for row in rows], "Extraction, original and mirrored image")
            print(f"written: {save('extraction', rows)}")
            return
        if not (folder / "features.npy").exists():
            write_release(folder, args.scale)
        rows, rates = [], []
        for way in (facemill, straightforward):
            part, tar = alone(way, folder, args.threads)
            rows += part
            rates.append(tar)
    assert rates[0] == rates[1], f"the two ways differ: {rates}"
    counted = {"pool", "score pairs", "ROC"}
    for name in ("facemill", "straightforward"):
        mine = [row for row in rows if row["way"] == name and row["stage"] in counted]
        totals = {key: round(sum(row[key] for row in mine), 3) for key in ("seconds", "processor_seconds")}
        rows.append({"stage": "1:1 in all", "way": name, **totals, "peak_gb": max(row["peak_gb"] for row in mine)})
    show(rows, "IJB-C protocols")
    print(f"written: {save('evaluation', rows)}")


if __name__ == "__main__":
    run(main)
