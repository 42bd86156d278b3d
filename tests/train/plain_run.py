"""train/run.py with one more backbone to name: a small network without batch statistics and without randomness.

Its result does not depend on how a batch is split over ranks, so that runs can be compared number by number.
"""

import sys
from pathlib import Path

from torch import Tensor, nn

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from models.registry import BACKBONES
from pipelines.common.command import run
from train.run import main


class Plain(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, embedding_size: int, input_size: int, *, channels: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=4, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * (input_size // 8) ** 2, embedding_size),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Normalised(Plain):
    """The small network with batch statistics."""

    def __init__(self, embedding_size: int, input_size: int) -> None:
        super().__init__(embedding_size, input_size)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, images):
        return self.norm(super().forward(images))


if __name__ == "__main__":
    BACKBONES["plain"] = Plain
    run(main)
