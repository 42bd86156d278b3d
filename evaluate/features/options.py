"""Options that the commands share: how a network is run, and what its results are called."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from evaluate.features.cache import CachedEmbedder
from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.preprocessing import add_input_options, input_options
from evaluate.features.ranks import World
from pipelines.common.command import at_least, say
from pipelines.loading.loader import Batch, read_once

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def add_checkpoint_option(parser: argparse._ActionsContainer, required: bool = True) -> None:
    """Add the network that a command runs; ``parser`` may be a group of which one option is given."""
    parser.add_argument("--checkpoint", type=Path, required=required, help="run folder, state dict or .onnx file")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that runs a network needs beside ``--checkpoint``."""
    add_input_options(parser)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: faster where a device multiplies it, less exact"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=128, help="images at a time on each device")
    parser.add_argument("--threads", type=at_least(1), default=4, help="decoding threads of each rank")


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``, a folder that keeps the embeddings which `load_embedder`'s result makes."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder that keeps embeddings: what one command has embedded, in part too, no other does again",
    )


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """Add the name of a command's results."""
    parser.add_argument("--name", help="the model's name in a report; default: the output folder's")


def load_embedder(
    args: argparse.Namespace, world: World, flip: bool = True, read: Callable[..., Iterator[Batch]] = read_once
) -> tuple[Embedder, str]:
    """What embeds with ``--checkpoint`` as the options say, and which images its network takes, which is printed."""
    network = load_network(args.checkpoint, args.network, world.device, input_options(args))
    if world.main:
        say(f"the network takes {network.input}")
    options: dict[str, Any] = {
        "batch_size": args.batch_size,
        "threads": args.threads,
        "autocast": PRECISIONS[args.precision],
        "flip": flip,
        "show": True,
        "read": read,
        "digest": network.digest(),
    }
    base = network.model, network.input_size, world
    if cache := getattr(args, "cache", None):
        return CachedEmbedder(*base, cache=cache, **options), network.input
    return Embedder(*base, **options), network.input
