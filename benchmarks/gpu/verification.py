"""Verification in float32 and in bfloat16, and its time."""

import time

import numpy as np
import torch

from benchmarks.gpu.material import encode, picture
from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import TINY, group, trainer
from benchmarks.measure import finish
from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from evaluate.protocols.folds import verify
from pipelines.loading.loader import read_once
from pipelines.sources.memory import MemorySource
from train.trainer import Trainer

MOST_DIFFERENT = 0.1  # percent of the pairs


def run(report: Report, setting: Setting) -> None:
    """Pairs that are one face moved and lit otherwise, or two faces: enough to tell what rounding does."""
    pairs, faces = (40, 8) if setting.small else (6000, 32)
    # The files differ, and few of them have to be made.
    files = {(face, variation): encode(picture(face, variation)) for face in range(faces) for variation in range(8)}
    generator = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    encoded = []
    for genuine in same:
        first, other = generator.choice(faces, 2, replace=False)
        one, two = generator.choice(8, 2, replace=False)
        encoded += [files[first, one], files[first if genuine else other, two]]
    source = MemorySource(encoded, name="pairs")
    began = time.perf_counter()
    next(read_once(source, np.arange(128) % len(source), batch_size=64, device=setting.place))
    finish(setting.place)
    report.figure("from nothing to the first batch", time.perf_counter() - began, "s")

    with group(setting) as world:
        _compare(report, setting, _trained(setting, world), source, same)


def _trained(setting: Setting, world: World) -> Trainer:
    """A network that tells these faces apart: of one that does not, rounding would decide on many a pair."""
    options = TINY if setting.small else [*TINY, "model={name: r18}", "data.batch_size=128"]
    run = trainer(setting, world, "verified", *options)
    for _ in range(60 if setting.small else 200):
        run.train_step(run.loader)
    run.loader.close()
    return run


def _compare(report: Report, setting: Setting, run: Trainer, source: MemorySource, same: np.ndarray) -> None:
    features = {}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        embed = Embedder(run.learner.backbone, run.config.model.input_size, run.world, batch_size=256, autocast=dtype)
        began = time.perf_counter()
        features[name] = embed(source)
        seconds = time.perf_counter() - began
        report.figure("verifying", seconds, "s", precision=name, images=len(source))
        report.figure("images/s, each seen twice", len(source) / seconds, "images/s", precision=name)
    accuracies = {name: 100 * verify(values, same).accuracy for name, values in features.items()}
    for name, accuracy in accuracies.items():
        report.figure("accuracy", accuracy, "%", precision=name)
    difference = abs(accuracies["float32"] - accuracies["bfloat16"])
    limit = max(MOST_DIFFERENT, 200 / len(same))  # of a small set two pairs are more than a tenth of a percent
    report.at_most("accuracies differ by", difference, limit, "%")
    one, two = (values.sum(1) / np.linalg.norm(values.sum(1), axis=1, keepdims=True) for values in features.values())
    report.figure("cosine of an image's two embeddings, the least", float((one * two).sum(1).min()))
