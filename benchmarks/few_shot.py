"""Identities of one's own from a few images each: what tuning gains on them, and what it costs on others.

    python -m benchmarks.few_shot runs/a --data data/faces --bins lfw.bin --identities 300 --images 2

Some identities of a data set that the network was not trained on are drawn, and some images of each. A run of a config,
by default configs/finetune_fewshot.yaml, tunes the network on these images. The identities' other images tell what that
gains: the share whose nearest identity is the right one (rank-1; an identity is the mean of its images in the tuning
set), and the share of pairs of one identity that are more alike than one in a thousand pairs of two (TAR at FAR 1e-3).
Verification sets tell what it costs.

Errors are standard errors of the differences before and after, from the identities or the folds: what several splits
say of one of them counts once. What is done in the folder of the runs is not done again.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.accuracy import is_config_of
from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.pairs import PairImages, read_pairs
from evaluate.features.ranks import World, take_device
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.folds import FOLDS, thresholds_of, verify
from evaluate.reporting.words import rate_name
from models.weights import load_backbone
from pipelines.common.command import at_least, run
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names, replacing
from pipelines.sources import open_source
from pipelines.sources.memory import MemorySource
from pipelines.sources.source import Source
from train.config import load_config
from train.distributed import joined
from train.trainer import train

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/finetune_fewshot.yaml"
FAR = 1e-3

# Accuracies in [0, 1] by figure: of each identity, or of each fold.
Figures = dict[str, list[float]]


class Split(NamedTuple):
    """Labels (n,) of the identities, indices (n, k) of images for tuning, and their other images with their rows."""

    labels: np.ndarray
    tuning: np.ndarray
    held_out: np.ndarray
    rows: np.ndarray


def draw(source: Source, identities: int, images: int, seed: int) -> Split:
    """Identities with two images more than are for tuning, at random; ``UserError`` where there are too few."""
    generator = np.random.default_rng(seed)
    labels = source.labels(np.arange(len(source)))
    counts = np.bincount(labels[labels >= 0], minlength=source.num_classes)
    able = np.flatnonzero(counts >= images + 2)
    if len(able) < identities:
        raise UserError(f"only {len(able)} identities have {images + 2} images: ask for fewer with --identities")
    chosen = generator.permutation(able)[:identities]
    shuffled = [generator.permutation(np.flatnonzero(labels == label)) for label in chosen]
    held_out = [of_one[images:] for of_one in shuffled]
    rows = np.repeat(np.arange(identities), [len(of_one) for of_one in held_out])
    return Split(chosen, np.stack([of_one[:images] for of_one in shuffled]), np.concatenate(held_out), rows)


def write(source: Source, split: Split, folder: Path) -> None:
    """The images for tuning as ``folder/identity/number.jpg``; readers look at the bytes, not at the name."""
    for row, indices in enumerate(split.tuning):
        identity = folder / f"{row:06d}"
        identity.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(source.read(indices)[0]):
            (identity / f"{number}.jpg").write_bytes(image.tobytes())


def recognised(tuning: np.ndarray, held_out: np.ndarray, rows: np.ndarray) -> Figures:
    """Rank-1 and TAR, of each identity, from unit embeddings (n, k, d), and (m, d) of the identities ``rows`` (m,)."""
    gallery = tuning.mean(1)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    right = (held_out @ gallery.T).argmax(1) == rows
    scores = held_out @ held_out.T
    first, second = np.triu_indices(len(rows), 1)
    same, alike = rows[first] == rows[second], scores[first, second]
    others = np.sort(alike[~same])[::-1]
    accepted = alike[same] > others[int(FAR * len(others))]
    of_pair = rows[first[same]]
    return {
        "rank-1": [float(right[rows == row].mean()) for row in range(len(tuning))],
        f"TAR at FAR {rate_name(FAR)}": [float(accepted[of_pair == row].mean()) for row in range(len(tuning))],
    }


def embedder(checkpoint: Path, threads: int) -> Embedder:
    """What embeds images and their mirror images."""
    device = take_device()
    network = load_network(checkpoint, device=device)
    return Embedder(network.model, network.input_size, World(device), threads=threads, show=True)


def kept(path: Path) -> dict[str, Any]:
    """What `keep` wrote; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def check_made_of(runs: Path, network: Path, data: Path) -> None:
    """Note what the splits and figures in a folder are made of; ``UserError`` where they are of something else."""
    known, made_of = runs / "made_of.json", {"network": str(network), "data": str(data)}
    if runs.is_dir() and any(runs.iterdir()) and kept(known) != made_of:
        raise UserError(f"{runs} holds runs of another network or other data; give another folder with --runs")
    keep(made_of, known)


def measured(checkpoint: Path, source: Source, split: Split, known: Path, threads: int) -> Figures:
    """Figures on the identities, read from the file ``known`` where they are there."""
    if not (found := kept(known)):
        chosen = np.concatenate([split.tuning.ravel(), split.held_out])
        everything = normalised(embedder(checkpoint, threads)(MemorySource(source.read(chosen)[0])).sum(axis=1))
        tuning = everything[: split.tuning.size].reshape(*split.tuning.shape, -1)
        found = recognised(tuning, everything[split.tuning.size :], split.rows)
        keep(found, known)
    return found


def verified(checkpoint: Path, bins: list[Path], known: Path, threads: int) -> Figures:
    """Accuracies of the folds of each verification set, read from the file ``known`` where they are there."""
    found, places = kept(known), [str(path.resolve()) for path in bins]
    for path, place in zip(bins, places):
        if place not in found:
            pairs = read_pairs(path)
            features = PairImages(path, pairs.encoded).embedded(embedder(checkpoint, threads))
            found[place] = verify(features, pairs.same, thresholds_of(path.name)).folds.tolist()
            keep(found, known)
    names = distinct_names([path.with_suffix("") for path in bins])
    return {name: found[place] for name, place in zip(names, places)}


def keep(found: Mapping[str, Any], known: Path) -> None:
    """Write what is found to a file, whole or not at all."""
    known.parent.mkdir(parents=True, exist_ok=True)
    with replacing(known) as temporary:
        temporary.write_text(json.dumps(found))


def tune(network: Path, data: Path, output: Path, options: argparse.Namespace, seed: int) -> None:
    """A run of the config from the network, unless there is a finished one, which must be of that config."""
    described = load_backbone(network)[1]
    model = [f"model.{name}={json.dumps(value)}" for name, value in described.items()]
    places = [f"model.init_from={network}", f"data.train={data}", f"output={output}", f"seed={seed}"]
    values = [*model, *places, *options.override]
    if (output / "config.yaml").exists() and not is_config_of(output / "config.yaml", options.config, values):
        raise UserError(f"{output} holds a run of another config; give other overrides another --name")
    if (output / "model.pt").exists():
        return
    config = load_config(options.config, values)
    with joined(config.device, config.dist.start_timeout) as world:
        train(config, world)


def compared(before: list[Figures], after: list[Figures], units: list[np.ndarray]) -> list[results.Row]:
    """A row for each figure, in percent, over the splits; ``units`` number the identities or folds of each."""
    rows: list[results.Row] = []
    _, unit = np.unique(np.concatenate(units), return_inverse=True)
    for name in before[0]:
        old, new = (100 * np.concatenate([figures[name] for figures in each]) for each in (before, after))
        gains = new - old
        mean = gains.mean()
        deviations = np.bincount(unit, gains - mean)
        error = (len(deviations) / (len(deviations) - 1) * (deviations**2).sum()) ** 0.5 / len(gains)
        rows.append({"figure": name, "before": old.mean(), "after": new.mean(), "gain": mean, "error": error})
    return rows


def printed(row: results.Row) -> results.Row:
    """A row as a reader wants it."""
    texts = {name: f"{row[name]:.2f}" for name in ("before", "after")}
    return {"figure, %": row["figure"], **texts, "gain": f"{row['gain']:+.2f} ± {row['error']:.2f}"}


def main() -> None:
    """Split, tune, measure; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="run folder, checkpoint or state dict to begin with")
    parser.add_argument("--data", type=Path, required=True, help="aligned faces of identities that it has not seen")
    parser.add_argument("--bins", type=Path, nargs="*", default=[], help="verification sets, .bin files")
    parser.add_argument("--identities", type=at_least(2), default=300)
    parser.add_argument("--images", type=at_least(1), default=2, help="of each identity, for tuning")
    parser.add_argument("--splits", type=int, nargs="+", default=[0], help="seeds; each draws anew and trains")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--override", nargs="+", default=[], metavar="section.key=value")
    parser.add_argument("--threads", type=at_least(1), default=2, help="decoding threads of the measurements")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/few_shot", help="folder for splits and runs")
    parser.add_argument("--name", default="tuned", help="of the runs in it: another one for other overrides")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    network, source = options.network.resolve(), open_source(options.data)
    check_made_of(options.runs.resolve(), network, options.data.resolve())
    people, sets = (list[Figures](), list[Figures]()), (list[Figures](), list[Figures]())
    drawn: list[np.ndarray] = []
    for seed in options.splits:
        folder = options.runs.resolve() / f"{options.identities}x{options.images}_{seed}"
        split, output = draw(source, options.identities, options.images, seed), folder / options.name
        drawn.append(split.labels)
        if not (folder / "data").exists():
            write(source, split, folder / "data")
        tune(network, folder / "data", output, options, seed)
        where = (network, folder, options.runs.resolve()), (output, output, output)
        for (checkpoint, of_split, shared), of_people, of_sets in zip(where, people, sets):
            of_people.append(measured(checkpoint, source, split, of_split / "identities.json", options.threads))
            of_sets.append(verified(checkpoint, options.bins, shared / "sets.json", options.threads))
    rows = compared(*people, drawn) + compared(*sets, [np.arange(FOLDS)] * len(drawn))
    title = f"{options.identities} identities x {options.images} images, splits {options.splits}"
    results.show([printed(row) for row in rows], title)
    print(results.save(f"few_shot_{options.name}", rows, options.output))


if __name__ == "__main__":
    run(main)
