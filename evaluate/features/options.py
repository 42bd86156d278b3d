"""Options that the commands share: how a network is run, and what its results are called."""

import argparse
from pathlib import Path

import torch

from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.preprocessing import add_input_options, input_options
from evaluate.features.ranks import World
from pipelines.common.command import at_least, say

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def add_checkpoint_option(parser: argparse._ActionsContainer, required: bool = True) -> None:
    """Add the network that a command runs; ``parser`` may be a group of which one option is given."""
    parser.add_argument("--checkpoint", type=Path, required=required, help="run folder, state dict or .onnx file")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that runs a network needs beside ``--checkpoint``."""
    add_input_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 is for GPUs, and less exact")
    parser.add_argument("--batch-size", type=at_least(1), default=128, help="images at a time on each device")
    parser.add_argument("--threads", type=at_least(1), default=4, help="decoding threads of each rank")


def add_name_option(parser: argparse.ArgumentParser) -> None:
    """Add the name of a command's results."""
    parser.add_argument("--name", help="the model's name in a report; default: the output folder's")


def load_embedder(args: argparse.Namespace, world: World, flip: bool = True) -> tuple[Embedder, str]:
    """What embeds with ``--checkpoint`` as the options say, and which images its network takes, which is printed."""
    network = load_network(args.checkpoint, args.network, world.device, input_options(args))
    if world.main:
        say(f"the network takes {network.input}")
    embedder = Embedder(
        network.model,
        network.input_size,
        world,
        batch_size=args.batch_size,
        threads=args.threads,
        autocast=PRECISIONS[args.precision],
        flip=flip,
        show=True,
    )
    return embedder, network.input
