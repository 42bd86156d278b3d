"""A small data set and the config of a run on it."""

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.train.support import trained


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Eight identities of twelve images: a colour each, with noise."""
    folder = tmp_path_factory.mktemp("faces")
    generator = np.random.default_rng(0)
    for identity in range(8):
        (folder / f"{identity:02d}").mkdir()
        colour = generator.integers(40, 216, 3)
        for image in range(12):
            pixels = (colour + generator.normal(0, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{identity:02d}" / f"{image}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def finish(ranks):
    """A run to its end on ranks that have imported all: ``finish(config, "section.key=value", ranks=2)`` → stdout."""
    pool = ranks

    def to_the_end(path, *overrides, ranks=1):
        return pool(ranks, trained, str(path), overrides)[0]

    return to_the_end


def write_config(folder, faces):
    path = folder / "run.yaml"
    tree = {
        "data": {"train": str(faces), "batch_size": 16, "threads": 1},
        "model": {"name": "plain", "embedding_size": 16, "input_size": 32},
        "head": {"margin": "arcface", "s": 16, "m": 0.2},
        "optim": {"lr": 0.02},
        "schedule": {"epochs": 3, "warmup_steps": 2},
        "precision": "fp32",
        "device": "cpu",
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 1, "sinks": ["jsonl"]},
        "output": str(folder / "run"),
    }
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def config(tmp_path, faces):
    return write_config(tmp_path, faces)
