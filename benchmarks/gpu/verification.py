"""Verification in float32 and in bfloat16, and its time."""

import time

import numpy as np
import torch

from benchmarks.gpu.material import encode, picture
from benchmarks.gpu.part import Report, Setting
from benchmarks.measure import finish
from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from evaluate.protocols.folds import verify
from models import create_model
from pipelines.loading.loader import read_once
from pipelines.sources.memory import MemorySource

MOST_DIFFERENT = 0.1  # percent of the pairs
_BASES = 16


def run(report: Report, setting: Setting) -> None:
    """Pairs that are one face moved and lit otherwise, or two faces: enough to tell what rounding does."""
    pairs = 40 if setting.small else 6000
    # The files differ, and few of them have to be made.
    files = {(face, variation): encode(picture(face, variation)) for face in range(_BASES) for variation in range(8)}
    generator = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    encoded = []
    for genuine in same:
        first, other = generator.choice(_BASES, 2, replace=False)
        one, two = generator.choice(8, 2, replace=False)
        encoded += [files[first, one], files[first if genuine else other, two]]
    source = MemorySource(encoded, name="pairs")
    began = time.perf_counter()
    next(read_once(source, np.arange(128) % len(source), batch_size=64, device=setting.place))
    finish(setting.place)
    report.figure("from nothing to the first batch", time.perf_counter() - began, "s")

    torch.manual_seed(0)
    backbone = create_model("mbf" if setting.small else "r50", 512).to(setting.place)
    _settle(backbone, source, setting)
    features = {}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        embed = Embedder(backbone, 112, World(setting.place), batch_size=256, autocast=dtype)
        began = time.perf_counter()
        features[name] = embed(source)
        seconds = time.perf_counter() - began
        report.figure("verifying", seconds, "s", precision=name, images=len(source))
        report.figure("images/s, each seen twice", len(source) / seconds, "images/s", precision=name)
    accuracies = {name: 100 * verify(values, same).accuracy for name, values in features.items()}
    for name, accuracy in accuracies.items():
        report.figure("accuracy", accuracy, "%", precision=name)
    difference = abs(accuracies["float32"] - accuracies["bfloat16"])
    # A pair of the few on a small set weighs more than a tenth of a percent.
    limit = max(MOST_DIFFERENT, 100 / pairs)
    report.at_most("accuracies differ by", difference, limit, "%")
    one, two = (values.sum(1) / np.linalg.norm(values.sum(1), axis=1, keepdims=True) for values in features.values())
    report.figure("cosine of an image's two embeddings, the least", float((one * two).sum(1).min()))


@torch.no_grad()
def _settle(backbone: torch.nn.Module, source: MemorySource, setting: Setting) -> None:
    """Let the batch norms of a network without training see some images: what they divide by is right then."""
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches
    indices = np.random.default_rng(1).choice(len(source), 1024)
    for batch in read_once(source, indices[: 128 if setting.small else None], batch_size=64, device=setting.place):
        backbone(batch.images)
