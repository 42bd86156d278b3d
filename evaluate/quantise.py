"""An ONNX file in 8 bits, written only where it is as good: ``python -m evaluate.quantise model.onnx --help``.

The gate: on every set in ``--bins`` accuracy drops by at most .2 points, and the mean cosine of an image's embeddings
in float32 and in 8 bits is .99 at least.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.pairs import PairImages, read_pairs
from evaluate.features.preprocessing import Preprocessed, add_input_options, input_options
from evaluate.features.ranks import World
from evaluate.protocols.folds import thresholds_of, verify
from pipelines.common.command import at_least, run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_file, distinct_names, replacing
from pipelines.loading.landmarks import Landmarks, landmarks_beside, template_landmarks
from pipelines.loading.loader import read_once
from pipelines.sources import open_source
from pipelines.sources.bins import BinSet, read_bin
from pipelines.sources.memory import MemorySource
from pipelines.sources.source import Source

MOST_DROP = 0.002  # of the accuracy
LEAST_COSINE = 0.99
_BATCH = 16  # images at a time in calibration, whose activations are all kept for so long


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.quantise", description="Write an ONNX file in 8 bits, if it is as good."
    )
    parser.add_argument("checkpoint", type=Path, help="an .onnx file in float32")
    parser.add_argument("--calibrate", type=Path, required=True, help="aligned faces: a data set, or a .bin set")
    parser.add_argument("--images", type=at_least(1), default=256, help="how many of them, evenly chosen")
    parser.add_argument("--bins", type=Path, nargs="+", required=True, help="lfw.bin ...: what the gate judges by")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, an .onnx")
    parser.add_argument("--card", type=Path, help="README.md of an exported folder, to which the figures are added")
    parser.add_argument("--force", action="store_true", help="write it whatever the gate says")
    add_input_options(parser)
    parser.add_argument("--batch-size", type=at_least(1), default=128, help="images at a time")
    parser.add_argument("--threads", type=at_least(1), default=4, help="decoding threads")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    _check(args)
    sets = {name: (path, read_pairs(path)) for name, path in zip(distinct_names(args.bins), args.bins)}
    network = load_network(args.checkpoint, given=input_options(args))
    say(f"the network takes {network.input}")
    # Only here, for what they need is an extra, of which `load_network` tells.
    from evaluate.features.onnx_network import OnnxNetwork
    from evaluate.features.quantisation import quantise

    assert isinstance(network.model, Preprocessed) and isinstance(network.model.model, OnnxNetwork)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    check_file(args.output)
    graph = network.model.model
    with replacing(args.output) as temporary:
        images = _calibration(args, network.input_size, graph.batch or 1)
        quantise(graph, network.model.preprocessing, images, temporary)
        eight = Preprocessed(network.model.preprocessing, OnnxNetwork(temporary)).eval()
        world = World(torch.device("cpu"))
        embed, embed_eight = (
            Embedder(model, network.input_size, world, args.batch_size, args.threads, show=True)
            for model in (network.model, eight)
        )
        found = {name: _compared(embed, embed_eight, path, pairs) for name, (path, pairs) in sets.items()}
        for name, each in found.items():
            say(f"{name}: {each.before:.2%} in float32, {each.after:.2%} in 8 bits, mean cosine {each.cosine:.4f}")
        faults = [fault for name, each in found.items() for fault in each.faults(name)]
        if faults and not args.force:
            raise UserError(f"{'; '.join(faults)}: nothing is written (--force writes it all the same)")
    for fault in faults:
        say(f"written by --force: {fault}")
    small, large = (path.stat().st_size / 1e6 for path in (args.output, args.checkpoint))
    say(f"written: {args.output} ({small:.1f} MB, {large:.1f} MB in float32)")
    if args.card:
        _add_to_card(args.card, args.output.name, found, faults)


def _check(args: argparse.Namespace) -> None:
    for path in (args.checkpoint, args.output):
        if path.suffix.lower() != ".onnx":
            raise UserError(f"{path} is no name of an ONNX file; python -m models.export writes one")
    if args.output.resolve() == args.checkpoint.resolve():
        raise UserError("--output is the file itself: give another name")
    if args.card and not args.card.is_file():
        raise UserError(f"there is no card {args.card}: python -m models.export --output FOLDER writes one")


def _calibration(args: argparse.Namespace, size: int, least: int) -> Iterator[tuple[Tensor, ...]]:
    """Images for calibration, of a data set as `open_source` takes it or of a ``.bin`` set, with their landmarks.

    ``least``: that the network takes at a time, so that fewer would be none.
    """
    path: Path = args.calibrate
    landmarks: Landmarks = template_landmarks
    if path.suffix == ".bin":
        source: Source = MemorySource(read_bin(path).encoded, name=str(path))
        landmarks = landmarks_beside(path, len(source))
    else:
        source = open_source(path)
    if not len(source):
        raise UserError(f"{path} holds no images")
    indices = np.unique(np.linspace(0, len(source) - 1, args.images).astype(np.int64))
    if len(indices) < least:
        raise UserError(
            f"calibration has {len(indices)} images, but the network takes {least} at a time: give more by --calibrate "
            "and --images, or export it with --dynamic-batch"
        )
    few = max(_BATCH // least, 1) * least  # as the rest of a batch that does not fill the network's is left out
    few = min(few, len(indices))
    batches = read_once(source, indices, batch_size=few, image_size=size, threads=args.threads, landmarks=landmarks)
    return (batch.inputs for batch in batches)


@dataclass(frozen=True)
class Comparison:
    """A set's accuracy before and after, as fractions, and the mean cosine of an image's two embeddings."""

    before: float
    after: float
    cosine: float

    def faults(self, name: str) -> list[str]:
        """What the gate has against it."""
        found = []
        if not self.after >= self.before - MOST_DROP - 1e-9:
            found.append(f"accuracy on {name} drops by {100 * (self.before - self.after):.2f} points, more than .2")
        if not self.cosine >= LEAST_COSINE:
            found.append(f"the mean cosine on {name} is {self.cosine:.4f}, less than .99")
        return found


def _compared(embed: Embedder, embed_eight: Embedder, path: Path, pairs: BinSet) -> Comparison:
    images = PairImages(path, pairs.encoded)
    before, after = images.embedded(embed), images.embedded(embed_eight)
    was, now = (verify(features, pairs.same, thresholds_of(path.name)).accuracy for features in (before, after))
    return Comparison(was, now, float(cosines(before, after).mean()))


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines (n,) between the embeddings of the same images, of features (n, v, d) whose views are summed."""
    a, b = (features.astype(np.float64).sum(axis=1) for features in (first, second))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)


def _add_to_card(card: Path, name: str, found: dict[str, Comparison], faults: list[str]) -> None:
    """Put the figures at the end of the card, and take out those of an earlier file of that name."""
    title = f"## In 8 bits: {name}\n"
    before, _, rest = card.read_text(encoding="utf-8").partition(f"\n{title}")
    text = before + "".join(rest.partition("\n## ")[1:])  # the sections behind it stay
    lines = [
        f"| {set_} | {100 * each.before:.2f} | {100 * each.after:.2f} | {each.cosine:.4f} |"
        for set_, each in found.items()
    ]
    table = ["| set | accuracy %, float32 | int8 | mean cosine |", "|---|---|---|---|", *lines]
    forced = [f"\nWritten although {'; '.join(faults)}."] if faults else []
    with replacing(card) as temporary:
        temporary.write_text(f"{text}\n{title}\n" + "\n".join([*table, *forced, ""]), encoding="utf-8")


if __name__ == "__main__":
    run(main)
