"""Make the synthetic data set: ``python -m pipelines.synthetic data/synthetic``."""

import argparse
from pathlib import Path

from pipelines.common.command import at_least, run, say

# Where workers find what they run: they do not import the __main__ of a package.
from pipelines.synthetic.dataset import make_dataset


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.synthetic",
        description="Procedural faces to train on and held-out identities to verify, without a download.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--identities", type=at_least(1), default=1000)
    parser.add_argument("--images-per-identity", type=at_least(1), default=16)
    parser.add_argument(
        "--held-out", type=at_least(1), default=300, help="identities of heldout.bin, a multiple of ten"
    )
    parser.add_argument("--seed", type=at_least(0), default=2048)
    parser.add_argument("--processes", type=at_least(1), help="default: the CPUs available")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    say(f"{folder}: {'written' if make_dataset(folder, **arguments) else 'already there'}")


if __name__ == "__main__":
    run(main)
