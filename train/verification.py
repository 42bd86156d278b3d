"""Verification of the backbone while it trains: all sets, on all ranks, by the evaluator's own protocol."""

from pathlib import Path

import torch
from torch import nn

from evaluate.embed import embed
from evaluate.verification import VerificationResult, verify
from pipelines.bins import read_bin
from pipelines.sources import MemorySource
from train.config import Config
from train.distributed import World


def find_bin(name: str, train: Path) -> Path:
    """The file of a verification set: a path as it is, a bare name beside the training data."""
    if name.endswith(".bin"):
        return Path(name)
    return (train if train.is_dir() else train.parent) / f"{name}.bin"


class Verifier:
    """The verification sets of a run, read once; call it with the backbone on all ranks."""

    def __init__(self, config: Config, world: World, autocast: torch.dtype | None) -> None:
        self.config, self.world, self.autocast = config, world, autocast
        paths = {name: find_bin(name, Path(config.data.train)) for name in config.verify.bins}
        self.sets = {Path(name).stem: read_bin(path) for name, path in paths.items()}

    def __call__(self, backbone: nn.Module) -> dict[str, VerificationResult]:
        """Results by set; the same on every rank."""
        results = {}
        for name, pairs in self.sets.items():
            features = embed(
                backbone,
                MemorySource(pairs.encoded),
                device=self.world.device,
                batch_size=self.config.verify.batch_size,
                image_size=self.config.model.input_size,
                rank=self.world.rank,
                world_size=self.world.size,
                threads=self.config.data.threads,
                autocast=self.autocast,
            )
            results[name] = verify(features, pairs.same)
        return results
