"""The IJB-C protocols on a synthetic set of full size, stage by stage, beside the straightforward way.

The straightforward way is that of the published scripts: one ``np.where`` a template and a media, float64 products of
the pairs' templates, scikit-learn's ``roc_curve``. Each way runs in a process of its own on the same features, which
lie in memory before the clock starts; peak memory is counted beside them. ``python -m benchmarks.evaluation --help``.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_curve
from sklearn.preprocessing import normalize

from benchmarks.results import Row, save, show
from benchmarks.stages import Clock, alone
from benchmarks.synthetic_ijb import write_release
from evaluate.features.files import load_features
from evaluate.protocols.ijb_lists import IJB
from evaluate.protocols.resampling import RESAMPLES
from evaluate.protocols.roc import Roc
from evaluate.protocols.scores import error_bound, exact, pair_scores
from evaluate.protocols.templates import pool
from evaluate.templates.one_to_many import identification
from evaluate.templates.one_to_one import FARS, tar_uncertainty
from pipelines.common.command import run
from pipelines.common.cpu import keep_freed_memory


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of IJB-C's size; 1 needs 2 GB of disk")
    parser.add_argument(
        "--folder", type=Path, help="where the set lies or will be written; default: removed afterwards"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
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
