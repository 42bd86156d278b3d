"""Extraction of an IJB set's features: images a second, those of the network alone, and each stage's share of the work.

    python -m benchmarks.extraction --networks r18 net.onnx --images 256

All stages run in turns, on the same images. The network alone, on aligned images that lie in memory, is the ceiling:
reading, decoding, aligning and writing work beside it. Shares are of the host's processor time, so that other programs
disturb them little; what a GPU does is not in them.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from PIL import Image
from torch import Tensor

from benchmarks.face_ijb import write_faces
from benchmarks.measure import in_turns
from benchmarks.results import Row, save, show
from evaluate.features.embed import embed_batches
from evaluate.features.extract import CHUNK, join
from evaluate.features.network import Network, load_network
from evaluate.features.pieces import embed_missing, split
from evaluate.features.ranks import World
from evaluate.protocols.ijb_lists import IJB
from models import create_model
from models.folding import fold_batch_norms
from pipelines.common.alignment import SIZE
from pipelines.common.command import at_least, run
from pipelines.loading.aligned import read_aligned
from pipelines.loading.decoder import Decoder
from pipelines.loading.loader import read_batches
from pipelines.sources.lists import ListSource

ROUNDS = 5
STAGES = ("read", "decode", "align", "network", "write")
Times = dict[str, list[float]]  # by stage: seconds in each round


def write_noise(folder: Path) -> None:
    """A release whose loose crops show smooth noise, for want of faces."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as faces:
        for number in range(64):
            path = Path(faces) / str(number % 8) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            noise = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
            noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, quality=90)
        write_faces(folder, Path(faces))


def measure(name: str, data: IJB, count: int, *, batch_size: int, threads: int) -> Row:
    """A row for a network, a checkpoint's path or a backbone's name: images a second, shares in per cent.

    ``count`` images of ``data`` are taken, the first again where there are fewer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.bfloat16 if device.type == "cuda" else None
    network = _network(name, device)
    images = data.images()
    rows = np.resize(np.arange(len(images.names)), count)
    source = ListSource([str(data.image_path(images.names[row])) for row in rows])
    batches = np.split(np.arange(count), range(batch_size, count, batch_size))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "features.partial"
        pieces = split(count, CHUNK, folder)

        def decoded() -> Iterator[tuple[Tensor, ...]]:
            decoder = Decoder(
                batch_size=batch_size,
                image_size=network.input_size,
                device=device,
                threads=threads,
                transform=_cut,
                any_size=True,
            )
            return (batch.inputs for batch in read_batches(source, batches, decoder))

        def aligned() -> Iterator[tuple[Tensor, ...]]:
            read = read_aligned(
                source,
                np.arange(count),
                batch_size=batch_size,
                image_size=network.input_size,
                device=device,
                threads=threads,
                landmarks=images.landmarks[rows].__getitem__,
            )
            return (batch.inputs for batch in read)

        def write(features: Iterator[Tensor]) -> None:
            folder.mkdir()
            embed_missing(pieces, lambda _: features, World(device), source.describe)
            join(pieces, folder.with_suffix(".npy"), folder)

        ready = list(aligned())
        features = list(embed_batches(network.model, ready, autocast=autocast))
        walls, works = in_turns(
            {
                "read": lambda: _drain(source.read(chosen) for chosen in batches),
                "decode": lambda: _drain(decoded()),
                "align": lambda: _drain(aligned()),
                "write": lambda: write(iter(features)),
                "network": lambda: _drain(embed_batches(network.model, ready, autocast=autocast)),
                "whole": lambda: write(embed_batches(network.model, aligned(), autocast=autocast)),
            },
            ROUNDS,
            device,
            warm_up=0,
        )
    return _row(name, count, walls, works)


def _row(name: str, count: int, walls: Times, works: Times) -> Row:
    work = {stage: statistics.median(seconds) for stage, seconds in works.items()}
    work["align"] -= work["decode"]  # each of the first three contains the one before
    work["decode"] -= work["read"]
    total = sum(work[stage] for stage in STAGES)
    ceiling = statistics.median(alone / whole for alone, whole in zip(walls["network"], walls["whole"], strict=True))
    return {
        "network": name,
        "images_per_second": round(count / statistics.median(walls["whole"]), 1),
        "network_alone": round(count / statistics.median(walls["network"]), 1),
        "of_the_ceiling_%": round(100 * ceiling, 1),
        "processor_ms_per_image": round(1000 * work["whole"] / count, 3),
        **{f"{stage}_%": round(100 * work[stage] / total, 1) for stage in STAGES},
    }


def printed(row: Row) -> Row:
    """A row as a terminal has room for it."""
    return {
        "network": Path(str(row["network"])).name,
        "images/s": row["images_per_second"],
        "network alone": row["network_alone"],
        "% of it": row["of_the_ceiling_%"],
        "CPU ms/image": row["processor_ms_per_image"],
        "% by stage": " ".join(f"{row[f'{stage}_%']:.1f}" for stage in STAGES),
    }


def _network(name: str, device: torch.device) -> Network:
    if Path(name).exists():
        return load_network(Path(name), device=device)
    model = create_model(name).eval()
    fold_batch_norms(model, torch.zeros(1, 3, SIZE, SIZE))  # as `load_network` does
    return Network(model.to(device, memory_format=torch.channels_last), SIZE)  # type: ignore[call-overload]  # stub lacks it


def _cut(images: DataNode, image_size: int) -> DataNode:
    """The middle of each image, in place of the warp."""
    return fn.crop(images, crop=(image_size, image_size), out_of_bounds_policy="pad")


def _drain(values: Iterator[object]) -> None:
    for _ in values:
        pass


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        help="a release as evaluate.ijb takes it; where it has no images, and by default, of noise",
    )
    parser.add_argument("--networks", nargs="+", default=["mbf"], help="checkpoints or backbones' names")
    parser.add_argument("--images", type=at_least(1), default=512, help="how many are extracted")
    parser.add_argument("--batch-size", type=at_least(1), default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # a fresh network's activations fade into them, which are slow
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "IJBC" / "loose_crop").exists():
            write_noise(folder)
        data = IJB(folder, "IJBC")
        rows = [
            measure(name, data, args.images, batch_size=args.batch_size, threads=args.threads) for name in args.networks
        ]
    show([printed(row) for row in rows], "Extraction, original and mirrored image")
    print(f"written: {save('extraction', rows)}")


if __name__ == "__main__":
    run(main)
