"""Accuracy of recipes and margins, each trained alike on one small data set.

    python -m benchmarks.accuracy --data celeba297 --bins lfw.bin
    python -m benchmarks.accuracy plain rsp topofr --seeds 1 2 3 --data celeba297 --bins lfw.bin

A row is a few values of the quickstart's config. ``train/run.py`` trains it and ``evaluate.verification`` judges it, as
a user would; the first row of each network is what the others are compared with. Folds of a verification set share no
pairs, so the differences of two rows fold by fold are far less noisy than the accuracies themselves. What was done
before is kept in ``--runs``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import results
from benchmarks.command import ROOT, command
from evaluate.reporting.results import read_results
from pipelines.common.command import run
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names
from train.config import load_config
from train.planning.automatic import settled_values

QUICKSTART = ROOT / "configs/quickstart.yaml"
# Small enough for minutes on one core, and long enough that faces are told apart.
NETWORKS = {
    "r18": ["model={name: r18, width: 0.25, embedding_size: 256, input_size: 56}", "schedule.epochs=5"],
    "mbf": ["schedule.epochs=8"],
    "transface_t": [
        "model={name: transface_t, embedding_size: 256, input_size: 36}",
        "schedule.epochs=2",
        "optim.lr=0.001",
        "precision=bf16",
    ],
}
EVERY_RUN = ["data.batch_size=64", "data.threads=1", "verify.bins=[]", "log.sinks=[jsonl]"]


def margin(name: str, **options: float) -> list[str]:
    return [f"head={json.dumps({'margin': name, 's': 24, **options})}"]


# The quickstart's arcface has s 24 and m .2, two fifths of the published .5, which is not learnt in minutes. So every
# margin here has s 24 and two fifths of its published margins, and of what grows with them: MV-Softmax's t, and the
# regulariser of MagFace, which is proportional to s too. BroadFace's queue is a sixth of the images. SCF is missing: it
# learns the confidence of a frozen encoder, not embeddings. rsp is what TopoFR's augmentation does by itself.
ROWS = {
    "plain": ("r18", []),
    "rsp": ("r18", ["data.augment=rsp"]),
    "topofr": ("r18", ["data.augment=rsp", "recipe.name=topofr"]),
    "topofr without rsp": ("r18", ["recipe.name=topofr"]),
    "contraface": ("r18", ["recipe={name: contraface, late_dropout: 0.4}"]),
    "arcface": ("mbf", margin("arcface", m=0.2)),
    "cosface": ("mbf", margin("cosface", m=0.16)),
    "combined": ("mbf", margin("combined", m2=0.12, m3=0.08)),
    "sphereface": ("mbf", margin("sphereface", m=1.28)),
    "curricularface": ("mbf", margin("curricularface", m=0.2)),
    "mv_softmax": ("mbf", margin("mv_softmax", m=0.14, t=0.08)),
    "magface": ("mbf", margin("magface", l_m=0.18, u_m=0.32, lambda_g=5.25)),
    "adaface": ("mbf", margin("adaface", m=0.16)),
    "elasticface": ("mbf", margin("elasticface", m=0.2, sigma=0.02)),
    "gb_cosface": ("mbf", margin("gb_cosface", m=0.064)),
    "gb_magface": ("mbf", margin("gb_magface", l_m=0.058, u_m=0.102, lambda_g=5.25)),
    "broadface": ("mbf", margin("broadface", m=0.2, queue_size=1024)),
    "uniface": ("mbf", margin("uniface", m=0.16)),
    "sphereface2": ("mbf", margin("sphereface2", m=0.16)),
    "sphereface_r1": ("mbf", margin("sphereface_r1", m=1.16)),
    "sphereface_r2": ("mbf", margin("sphereface_r2", m=1.16)),
    "margin warm-up": ("mbf", ["head.warmup_epochs=2"]),
    "sampling by stages": ("mbf", ["head.sample_rate=0.1", "head.stages=[{epoch: 4, sample_rate: 1}]"]),
    "averaged weights": ("mbf", ["optim.ema=0.99"]),
    "centres by lion": ("mbf", ["head.optim={name: lion, lr: 0.2}"]),
    "plain vit": ("transface_t", []),
    "transface": ("transface_t", ["recipe.name=transface"]),
}


class Outcome(NamedTuple):
    """A trained row: the accuracies of its folds by verification set, and its speed in training."""

    folds: dict[str, list[float]]
    images_per_second: float


def outcome(name: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Train and verify one row in a folder of its own, or only do what is left to do there."""
    network, overrides = ROWS[name]
    output = options.runs.resolve() / f"{name.replace(' ', '_')}_{seed}"
    values = [f"data.train={options.data.resolve()}", *EVERY_RUN, *NETWORKS[network], *overrides, *options.override]
    values += [f"seed={seed}", f"output={output}"]
    kept, done = output / "config.yaml", output / "results.json"
    if kept.exists() and not is_config_of(kept, QUICKSTART, values):
        raise UserError(f"{output} holds a run of another config; give another folder with --runs")
    if not (output / "model.pt").exists():
        command(output, "train/run.py", "--config", QUICKSTART, *values)
    bins = [path.resolve() for path in options.bins]
    names = distinct_names([path.with_suffix("") for path in bins])
    if not done.exists() or list(folds_of(done)) != names:
        where = ["--checkpoint", output, "--output", output]
        command(output, "-m", "evaluate.verification", *where, "--threads", 1, "--bins", *bins)
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return Outcome(folds_of(done), median(line["images_per_second"] for line in log if "images_per_second" in line))


def is_config_of(kept: Path, config: Path, values: Sequence[str]) -> bool:
    """Whether a run's config is ``config`` with ``values``, of which some may be found when a run starts."""
    found = load_config(kept)
    settled = settled_values(load_config(config, values), found)
    return load_config(config, [*values, *settled]) == found


def folds_of(done: Path) -> dict[str, list[float]]:
    """The accuracies of the folds by verification set."""
    sets = read_results(done).sets or {}
    return {key: figures.folds for key, figures in sets.items() if figures.folds}


def compare(folds: np.ndarray, plain: np.ndarray) -> results.Row:
    """Figures in percent from the accuracies (seeds, folds) of a row and of the row it is compared with.

    ``spread`` is the standard deviation of the seeds' accuracies, ``error`` the standard error of ``over_plain`` from
    the differences of the folds, each averaged over the seeds: it does not tell how seeds differ.
    """
    accuracies = 100 * folds.mean(1)
    over = 100 * (folds - plain).mean(0)
    return {
        "accuracy": accuracies.mean(),
        "folds_std": 100 * folds.std(1).mean(),
        "spread": accuracies.std(ddof=1) if len(folds) > 1 else None,
        "over_plain": over.mean(),
        "error": over.std(ddof=1) / len(over) ** 0.5,
    }


def table(names: Sequence[str], seeds: Sequence[int], outcomes: dict[tuple[str, int], Outcome]) -> list[results.Row]:
    """A row for each verification set and each name, compared with the first name of its network."""
    rows: list[results.Row] = []
    for key in outcomes[names[0], seeds[0]].folds:
        folds = {name: np.array([outcomes[name, seed].folds[key] for seed in seeds]) for name in names}
        for name in names:
            first = next(other for other in names if ROWS[other][0] == ROWS[name][0])
            speed = median(outcomes[name, seed].images_per_second for seed in seeds)
            figures = compare(folds[name], folds[first])
            rows.append({"row": name, "network": ROWS[name][0], "set": key, **figures, "images_per_second": speed})
    return rows


def printed(row: results.Row) -> results.Row:
    """A row as a reader wants it."""
    spread = {} if row["spread"] is None else {"spread": f"{row['spread']:.2f}"}
    return {
        "row": f"{row['network']} {row['row']}",
        "accuracy %": f"{row['accuracy']:.2f} ± {row['folds_std']:.2f}",
        **spread,
        "over plain": f"{row['over_plain']:+.2f} ± {row['error']:.2f}",
        "images/s": row["images_per_second"],
    }


def main() -> None:
    """Train the rows, print a table for each verification set, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--data", type=Path, required=True, help="training set, anything that data.train takes")
    parser.add_argument("--bins", type=Path, nargs="+", required=True, help="verification sets, .bin files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2048])
    parser.add_argument("--jobs", type=int, default=1, help="rows trained at a time, one thread each")
    parser.add_argument("--override", nargs="+", default=[], metavar="section.key=value", help="in every row")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/accuracy", help="folder for the runs")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file and the chart")
    options = parser.parse_args()
    names = options.rows or list(ROWS)
    if unknown := set(names) - set(ROWS):
        raise UserError(f"unknown row {sorted(unknown)[0]!r}; there are: {', '.join(ROWS)}")
    tasks = [(name, seed) for seed in options.seeds for name in names]

    def trained(task: tuple[str, int]) -> Outcome:
        return outcome(*task, options)

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = dict(zip(tasks, pool.map(trained, tasks)))
    rows = table(names, options.seeds, outcomes)
    for key in dict.fromkeys(row["set"] for row in rows):
        title = f"{key}, seeds {', '.join(map(str, options.seeds))}"
        results.show([printed(row) for row in rows if row["set"] == key], title)
    path = results.save("accuracy", rows, options.output)
    bars = [{"name": f"{row['network']} {row['row']}, {row['set']}", "accuracy": row["accuracy"]} for row in rows]
    results.bar_chart(bars, "name", "accuracy", "verification accuracy, %", path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    run(main)
