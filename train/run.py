"""Train: ``torchrun [--nproc_per_node=N] train/run.py --config configs/x.yaml [section.key=value ...]``."""

import argparse
import os
import sys
from pathlib import Path

# On a CPU torch's threads share the cores with the decoding: waiting threads that spin would halve it. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.common.command import run
from train.config import Config, load_config
from train.keys import key_table


class Keys(argparse.Action):
    """An option that prints what a config may hold, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(key_table(Config))
        parser.exit()


def main() -> None:
    """Parse the command line, join the other ranks, train."""
    parser = argparse.ArgumentParser(description="Train a face recognition model.")
    parser.add_argument(
        "--config", required=True, help="YAML file of the run, or the name of a config that comes with Facemill"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--keys", action=Keys, nargs=0, help="print every key with its default and meaning, and exit")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)

    # They take seconds to import, for which neither --help and --keys nor a mistake in the config have to wait.
    from train.distributed import joined
    from train.trainer import train

    with joined(config.device, config.dist.start_timeout) as world:
        train(config, world)


if __name__ == "__main__":
    run(main)
