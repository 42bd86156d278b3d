"""The data set that benchmarks take where they are given none."""

from pathlib import Path

from benchmarks.command import ROOT
from pipelines.synthetic.dataset import make_dataset


def synthetic_data() -> Path:
    """The folder of the synthetic faces, which are written unless they are there."""
    folder = ROOT / "data/synthetic"
    make_dataset(folder)
    return folder
