"""Options that the commands share: how a network is run, and what its results are called."""

import argparse

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what a command that runs a network needs beside ``--checkpoint``."""
    parser.add_argument("--network", help="backbone, where the checkpoint does not tell: r50, vit_b, ...")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 is for GPUs, and less exact")
    parser.add_argument("--batch-size", type=int, default=128, help="images at a time on each device")
    parser.add_argument("--threads", type=int, default=4, help="decoding threads of each rank")
    parser.add_argument("--name", help="the model's name in a report; default: the output folder's")
