"""Options that the commands share: how a network is run, and what its results are called."""

import argparse
from pathlib import Path
from typing import Any

import torch

from evaluate.features.cache import CachedEmbedder
from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.preprocessing import add_input_options, input_options
from evaluate.features.ranks import World
from pipelines.common.command import at_least, say
from pipelines.common.errors import UserError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def add_checkpoint_option(parser: argparse._ActionsContainer, required: bool = True) -> None:
    """Add the network that a command runs; ``parser`` may be a group of which one option is given."""
    parser.add_argument("--checkpoint", type=Path, required=required, help="run folder, state dict or .onnx file")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that runs a network needs beside ``--checkpoint``."""
    group = add_input_options(parser)
    group.add_argument("--network", help="backbone: r50, vit_b, ...; not for .onnx files")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16: faster where a device multiplies it, less exact; not for .onnx files",
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


def refuse_network_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where an option says what to do with a network, and ``--checkpoint`` names none."""
    names = "network", "input_range", "mean", "std", "bgr", "precision", "cache"
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != parser.get_default(name)]
    if given and not args.checkpoint:
        parser.error(f"{', '.join(given)}: only for the network that --checkpoint names")


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """Add the name of a command's results."""
    parser.add_argument("--name", help="the model's name in a report; default: the output folder's")


def load_embedder(
    args: argparse.Namespace, world: World, flip: bool = True, aligned: bool = False
) -> tuple[Embedder, str]:
    """What embeds with ``--checkpoint`` as the options say, and which images its network takes, which is printed."""
    if PRECISIONS[args.precision] and args.checkpoint.suffix.lower() == ".onnx":
        raise UserError(
            f"--precision {args.precision} is not for {args.checkpoint}: an .onnx file computes in the precision that "
            "it was written in"
        )
    network = load_network(args.checkpoint, args.network, world.device, input_options(args))
    if world.main:
        say(f"the network takes {network.input}")
    options: dict[str, Any] = {
        "batch_size": args.batch_size,
        "threads": args.threads,
        "autocast": PRECISIONS[args.precision],
        "flip": flip,
        "show": True,
        "aligned": aligned,
        "digest": network.digest(),
    }
    base = network.model, network.input_size, world
    if cache := getattr(args, "cache", None):
        return CachedEmbedder(*base, cache=cache, **options), network.input
    return Embedder(*base, **options), network.input
