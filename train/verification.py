"""Verification of the backbone while it trains: all sets, on all ranks, by the evaluator's own protocol."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from evaluate.features.embed import Embedder
from evaluate.features.pairs import PairImages, read_pairs
from evaluate.features.ranks import World
from evaluate.protocols.folds import VerificationResult, thresholds_of, verify
from pipelines.common.files import distinct_names
from pipelines.loading.loader import read_once
from train.config import Config
from train.pictures import worst_picture
from train.sections.auto import settled


def find_bin(name: str, *train: Path) -> Path:
    """The file of a verification set: a path as it is, a bare name beside the first training set that has it there."""
    if name.lower().endswith(".bin"):
        return Path(name)
    beside = [(path if path.is_dir() else path.parent) / f"{name}.bin" for path in train]
    return next(filter(Path.exists, beside), beside[0])


class Verifier:
    """The verification sets of a run; call it with the backbone on all ranks.

    They are read and every image is decoded when the run starts, each rank a share: a set that cannot be used is known
    then, not hours later.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        paths = [find_bin(name, *(Path(entry.path) for entry in config.data.train)) for name in config.verify.bins]
        names = distinct_names([path.with_suffix("") for path in paths])
        self.sets = {name: self._read(path) for name, path in zip(names, paths)}

    def _read(self, path: Path) -> tuple[PairImages, np.ndarray]:
        """The images of the pairs, and whether each pair is one person (P,)."""
        pairs = read_pairs(path)
        images = PairImages(path, pairs.encoded)
        for _ in read_once(
            images.source,
            np.arange(self.world.rank, len(images.source), self.world.size),
            batch_size=self.config.verify.batch_size,
            image_size=self.config.model.input_size,
            device=self.world.device,
            dtype=torch.uint8,
            threads=settled(self.config.data.threads),
        ):
            pass
        return images, pairs.same

    def __call__(self, backbone: nn.Module, autocast: torch.dtype | None = None) -> dict[str, VerificationResult]:
        """Results by set; the same on every rank. By default in float32, as the command ``evaluate.verification``."""
        embed = Embedder(
            backbone,
            self.config.model.input_size,
            self.world,
            batch_size=self.config.verify.batch_size,
            threads=settled(self.config.data.threads),
            autocast=autocast,
        )
        return {
            name: verify(images.embedded(embed), same, thresholds_of(name))
            for name, (images, same) in self.sets.items()
        }

    def worst(self, name: str, result: VerificationResult) -> Image.Image:
        """The pairs of a set that are judged worst."""
        images, same = self.sets[name]
        encoded, _ = images.source.read(images.rows)
        return worst_picture(result, same, encoded)
