"""Identities that two data sets share, found by embedding: the field's known leak between training and test sets.

``python -m evaluate.overlap TRAIN TEST --checkpoint FILE``. An identity is the mean of its images' embeddings; of each
identity of the second set the most similar one of the first is looked for. A ``.bin`` set has no identities: there,
every image stands for itself.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate.features.embed import embed_batches
from evaluate.features.network import Network, load_network
from evaluate.features.preprocessing import add_input_options, input_options
from evaluate.protocols.embeddings import finite
from pipelines.common.command import run
from pipelines.common.errors import UserError
from pipelines.common.files import replacing
from pipelines.common.pillow import decode
from pipelines.loading.loader import read_once
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin
from pipelines.sources.memory import MemorySource
from pipelines.sources.source import Source

_BLOCK = 4096  # identities a block of the similarity matrix, each way
_TILE = 112  # pixels
_COLUMNS = 4  # images shown of each identity
_ROWS = 100  # pairs of identities shown


def open_identities(path: Path) -> Source:
    """A data set as ``open_source`` takes it, or a ``.bin`` set with every image a class."""
    if path.suffix != ".bin":
        return open_source(path)
    encoded = read_bin(path).encoded
    return MemorySource(encoded, np.arange(len(encoded)), name=str(path))


def images_by_identity(source: Source, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of at most ``most`` images of each identity, evenly chosen, and their labels: int64 (n,), by label."""
    labels = source.labels(np.arange(len(source)))
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    people = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    chosen = [images[np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64)] for images in people]
    indices = np.concatenate(chosen)
    return indices, labels[indices]


def mean_embeddings(
    network: Network, source: Source, *, most: int, batch_size: int, device: torch.device, threads: int
) -> tuple[Tensor, np.ndarray]:
    """L2-normalised means float32 (c, d) of the identities' unit embeddings (original + mirrored), and labels (c,)."""
    indices, labels = images_by_identity(source, most)
    if not len(indices):
        raise UserError(f"no image has an identity, as {source.describe(0)}" if len(source) else "there are no images")
    batches = read_once(
        source, indices, batch_size=batch_size, image_size=network.input_size, device=device, threads=threads
    )
    present, rows = np.unique(labels, return_inverse=True)
    rows = torch.from_numpy(rows)
    sums, done = None, 0
    for features in embed_batches(network.model, (batch.images for batch in batches)):
        features = features.cpu()
        batch = indices[done : done + len(features)]
        finite(features.numpy(), "the network's embeddings", lambda row: source.describe(int(batch[row])))  # noqa: B023
        embeddings = torch.nn.functional.normalize(features.sum(dim=1))
        if sums is None:
            sums = torch.zeros(len(present), embeddings.shape[1])
        sums.index_add_(0, rows[done : done + len(embeddings)], embeddings)
        done += len(embeddings)
    return torch.nn.functional.normalize(sums), present


def nearest(first: Tensor, second: Tensor, *, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """For each row of ``second`` (b, d) the greatest cosine, float32 (b,), to a row of ``first`` (a, d), and which."""
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


def picture(first: Source, second: Source, pairs: list[tuple[int, int]]) -> Image.Image:
    """A row for each pair of labels: images of the one, a gap, images of the other."""
    sheet = Image.new("RGB", ((2 * _COLUMNS + 1) * _TILE, max(len(pairs), 1) * _TILE), "white")
    everyone = [source.labels(np.arange(len(source))) for source in (first, second)]
    for row, labels in enumerate(pairs):
        for side, (source, of_all, label) in enumerate(zip((first, second), everyone, labels)):
            encoded, _ = source.read(np.flatnonzero(of_all == label)[:_COLUMNS])
            for column, image in enumerate(encoded):
                tile = decode(image).resize((_TILE, _TILE))
                sheet.paste(tile, ((column + side * (_COLUMNS + 1)) * _TILE, row * _TILE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("first", type=Path, help="the training set")
    parser.add_argument("second", type=Path, help="the test set; may be a .bin")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, state dict or .onnx file")
    add_input_options(parser)
    parser.add_argument("--threshold", type=float, default=0.6, help="least cosine of the means of a shared identity")
    parser.add_argument("--images", type=int, default=8, help="images of each identity that are embedded")
    parser.add_argument("--output", type=Path, default=Path("overlap"), help="folder for overlap.json and overlap.png")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=4, help="decoding threads")
    arguments = parser.parse_args()
    for option in ("images", "batch_size", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be 1 at least")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(arguments.checkpoint, arguments.network, device, input_options(arguments))
    print(f"the network takes {network.input}")
    first, second = open_identities(arguments.first), open_identities(arguments.second)
    (first_means, first_labels), (second_means, second_labels) = (
        mean_embeddings(
            network,
            source,
            most=arguments.images,
            batch_size=arguments.batch_size,
            device=device,
            threads=arguments.threads,
        )
        for source in (first, second)
    )
    cosines, rows = nearest(first_means, second_means, device=device)
    shared = [row for row in np.argsort(-cosines, kind="stable").tolist() if cosines[row] >= arguments.threshold]
    pairs = [(int(first_labels[rows[row]]), int(second_labels[row])) for row in shared]
    listed = [
        {"first": first.identity(one), "second": second.identity(other), "cosine": round(float(cosines[row]), 4)}
        for row, (one, other) in zip(shared, pairs)
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output / "overlap.json") as temporary:
        temporary.write_text(json.dumps(listed, indent=1))
    with replacing(arguments.output / "overlap.png") as temporary:
        picture(first, second, pairs[:_ROWS]).save(temporary, "PNG")
    print(f"{len(shared)} of {len(second_labels)} identities of {arguments.second} are also in {arguments.first}")
    for line in listed[:20]:
        print(f"  {line['cosine']:.3f}  {line['first']}  {line['second']}")
    print(arguments.output)


if __name__ == "__main__":
    run(main)
