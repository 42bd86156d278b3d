"""Identities that two data sets share, found by embedding: the field's known leak between training and test sets.

``python -m evaluate.overlap TRAIN TEST --checkpoint FILE``. An identity is the mean of its images' embeddings; of each
identity of the second set the most similar one of the first is looked for. A ``.bin`` set has no identities: there,
every image stands for itself. By ``changes.txt``, ``python -m pipelines.prepare convert TRAIN OUT --changes
DIR/changes.txt`` leaves out the identities that are shared.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.features.embed import Embedder
from evaluate.features.options import add_cache_option, add_checkpoint_option, add_network_options, load_embedder
from evaluate.features.pairs import PairImages
from evaluate.features.ranks import World, take_device
from evaluate.features.sums import embedding_sums
from evaluate.protocols.embeddings import normalised
from evaluate.reporting.findings import Overlap, SharedIdentity
from evaluate.reporting.results import write_json
from evaluate.reporting.schema import FORMAT
from pipelines.common.command import at_least, cosine, run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, distinct_names
from pipelines.common.json_output import add_json_option, only_json
from pipelines.common.labels import images_by_label
from pipelines.loading.landmarks import Landmarks, template_landmarks
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin
from pipelines.sources.changes import NOBODY, Changes
from pipelines.sources.joined import JoinedSource
from pipelines.sources.memory import MemorySource
from pipelines.sources.selected import SelectedSource
from pipelines.sources.source import Source, all_labels

_BLOCK = 4096  # identities a block of the similarity matrix, each way
_COLUMNS = 4  # images shown of each identity
_ROWS = 100  # pairs of identities shown


@dataclass(frozen=True)
class Identities:
    """A set: its images, whose labels are its identities, and their landmarks."""

    source: Source
    landmarks: Landmarks


def open_identities(path: Path) -> Identities:
    """A data set as ``open_source`` takes it, or a ``.bin`` set with every distinct image a class."""
    if path.suffix != ".bin":
        return Identities(open_source(path), template_landmarks)
    encoded = read_bin(path).encoded
    everything = np.arange(len(encoded))
    images = PairImages(path, encoded)
    source = SelectedSource(MemorySource(encoded, everything, name=str(path)), images.first, everything)
    return Identities(source, images.landmarks)


def images_by_identity(source: Source, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of at most ``most`` images of each identity, evenly chosen, and their labels: int64 (n,), by label."""
    labels = all_labels(source, np.arange(len(source)))
    chosen = [
        images[np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64)]
        for images in images_by_label(labels)
    ]
    if not chosen:
        raise UserError(f"no image has an identity, as {source.describe(0)}" if len(source) else "there are no images")
    indices = np.concatenate(chosen)
    return indices, labels[indices]


def mean_embeddings(embedder: Embedder, identities: Identities, most: int) -> tuple[Tensor, np.ndarray]:
    """L2-normalised means float32 (c, d) of the identities' unit embeddings (original + mirrored), and labels (c,).

    At most ``most`` images of an identity are embedded.
    """
    source = identities.source
    indices, labels = images_by_identity(source, most)
    present, rows = np.unique(labels, return_inverse=True)
    chosen = SelectedSource(source, indices, np.arange(source.num_classes))
    sums = embedding_sums(
        embedder, chosen, rows, len(present), "normalise", lambda places: identities.landmarks(indices[places])
    )
    return torch.from_numpy(normalised(sums).astype(np.float32)), present


def joined_embeddings(embedder: Embedder, sets: Sequence[Identities], most: int) -> tuple[Tensor, np.ndarray]:
    """What `mean_embeddings` gives for the `JoinedSource` of ``sets``; they are embedded, and kept, one by one."""
    means, labels = zip(*(mean_embeddings(embedder, each, most) for each in sets))
    classes = np.cumsum([0, *(each.source.num_classes for each in sets)])
    return torch.cat(means), np.concatenate([own + start for own, start in zip(labels, classes)])


def nearest(first: Tensor, second: Tensor, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """For each row of ``second`` (b, d) the greatest cosine, float32 (b,), to a row of ``first`` (a, d), and which.

    Products are computed on the ``device``.
    """
    cosines, rows = [], []
    for others in second.split(_BLOCK):
        others = others.to(device)
        best = torch.full((len(others),), -torch.inf, device=device)
        where = torch.zeros(len(others), dtype=torch.int64, device=device)
        for number, block in enumerate(first.split(_BLOCK)):
            cosine, row = (others @ block.to(device).T).max(dim=1)
            where = torch.where(cosine > best, row + number * _BLOCK, where)
            best = torch.maximum(best, cosine)
        cosines.append(best.cpu())
        rows.append(where.cpu())
    return torch.cat(cosines).numpy(), torch.cat(rows).numpy()


def draw_shared(
    sources: Sequence[Source], pairs: Sequence[tuple[int, int]], captions: Sequence[str], path: Path
) -> None:
    """Picture a row for each pair of labels: images of the identity in the first source, and of that in the second."""
    from evaluate.reporting.pictures import Pair, pair_sheet, save_figure  # matplotlib takes its time to import

    labels = [all_labels(source, np.arange(len(source))) for source in sources]

    def some_images(side: int, label: int) -> list[np.ndarray]:
        encoded, _ = sources[side].read(np.flatnonzero(labels[side] == label)[:_COLUMNS])
        return encoded

    rows = [
        Pair(some_images(0, first), some_images(1, second), caption)
        for (first, second), caption in zip(pairs, captions)
    ]
    save_figure(pair_sheet({"Shared identities, the most similar first": rows}, columns=1), path, dpi=112)


def changes(source: Source, shared: Sequence[SharedIdentity], pairs: Sequence[tuple[int, int]]) -> Changes:
    """All images of the first set's identities among the ``shared``, to be left out; the most similar come first."""
    labels = all_labels(source, np.arange(len(source)))
    why: dict[int, str] = {}
    for entry, (label, _) in zip(shared, pairs):
        why.setdefault(label, f"{entry.first} is {entry.second} ({entry.cosine:.2f})")
    images = np.flatnonzero(np.isin(labels, list(why))).tolist()
    return Changes.of(source, {image: (NOBODY, why[int(labels[image])]) for image in images})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("first", type=Path, help="the training set")
    parser.add_argument("second", type=Path, nargs="+", help="the test sets; may be .bin")
    add_checkpoint_option(parser)
    parser.add_argument("--threshold", type=cosine, default=0.6, help="least cosine of the means of a shared identity")
    parser.add_argument("--images", type=at_least(1), default=8, help="images of each identity that are embedded")
    parser.add_argument("--output", type=Path, default=Path("overlap"), help="folder for what is found")
    add_network_options(parser)
    add_cache_option(parser)
    add_json_option(parser, "what overlap.json holds")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Find shared identities, print and write them; returns what ``overlap.json`` holds."""
    check_folder(args.output)
    device = take_device()
    embedder, network_input = load_embedder(args, World(device))
    train = open_identities(args.first)
    tests = {name: open_identities(path) for name, path in zip(distinct_names(args.second), args.second)}
    joined = {name: test.source for name, test in tests.items()}
    sources = train.source, JoinedSource(joined) if len(joined) > 1 else next(iter(joined.values()))
    first_means, first_labels = mean_embeddings(embedder, train, args.images)
    second_means, second_labels = joined_embeddings(embedder, list(tests.values()), args.images)
    cosines, rows = nearest(first_means, second_means, device)
    found = [row for row in np.argsort(-cosines, kind="stable").tolist() if cosines[row] >= args.threshold]
    pairs = [(int(first_labels[rows[row]]), int(second_labels[row])) for row in found]
    shared = [
        SharedIdentity(
            first=sources[0].identity(one), second=sources[1].identity(other), cosine=round(float(cosines[row]), 4)
        )
        for row, (one, other) in zip(found, pairs)
    ]
    lines = [f"{entry.cosine:.3f}  {entry.first}  {entry.second}" for entry in shared]
    args.output.mkdir(parents=True, exist_ok=True)
    result = Overlap(format=FORMAT, input=network_input, threshold=args.threshold, shared=shared)
    document = write_json(args.output / "overlap.json", result)
    changes(sources[0], shared, pairs).save(args.output / "changes.txt")
    draw_shared(sources, pairs[:_ROWS], lines, args.output / "overlap.png")
    unit = "images" if all(path.suffix == ".bin" for path in args.second) else "identities"
    say(f"{len(shared)} of {len(second_labels)} {unit} of {', '.join(tests)} are also in {args.first}")
    for line in lines[:20]:
        say(f"  {line}")
    say(f"written: {args.output}/overlap.json, overlap.png and changes.txt")
    return document


if __name__ == "__main__":
    run(main)
