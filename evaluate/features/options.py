"""Options that the commands share: how a network is run, and what its results are called."""

import argparse

import torch

from evaluate.features.preprocessing import add_input_options

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that runs a network needs beside ``--checkpoint``."""
    add_input_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 is for GPUs, and less exact")
    parser.add_argument("--batch-size", type=positive, default=128, help="images at a time on each device")
    parser.add_argument("--threads", type=positive, default=4, help="decoding threads of each rank")
    parser.add_argument("--name", help="the model's name in a report; default: the output folder's")


def positive(text: str) -> int:
    """A count of one at least, for ``type`` of an argument."""
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return count
