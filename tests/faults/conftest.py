"""A small data set with a bad image and a verification set, a run on it, and the same run without any fault."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.sources.bins import write_bin
from tests.faults.support import Job


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with ``faces``, eight identities of twelve images of which one is none, and ``pairs.bin``."""
    folder = tmp_path_factory.mktemp("faults")
    generator = np.random.default_rng(0)
    encoded = {}
    for identity in range(8):
        (folder / f"faces/{identity:02d}").mkdir(parents=True)
        colour = generator.integers(40, 216, 3)
        for image in range(12):
            pixels = (colour + generator.normal(0, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=95)
            encoded[identity, image] = stream.getvalue()
            (folder / f"faces/{identity:02d}/{image:02d}.jpg").write_bytes(stream.getvalue())
    (folder / "faces/03/05.jpg").write_bytes(b"this is no image")
    pairs = [((i % 8, 0), (i % 8 if i % 2 else (i + 1) % 8, 1 + i // 8)) for i in range(40)]
    write_bin(folder / "pairs.bin", [encoded[key] for pair in pairs for key in pair], np.arange(40) % 2 == 1)
    return folder


@pytest.fixture(scope="session")
def make_job(world):
    """``make_job(folder, **sections)``: a run whose output is ``folder/run``, or ``output``."""

    def make(folder, output=None, **changes):
        output = output or folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        tree = {
            "data": {"train": str(world / "faces"), "batch_size": 16, "threads": 1, "max_bad_fraction": 0.05},
            "model": {"name": "plain", "embedding_size": 16, "input_size": 32},
            "head": {"margin": "curricularface", "s": 16, "m": 0.2, "sample_rate": 0.6},
            "optim": {"lr": 0.02, "ema": 0.9},
            "schedule": {"epochs": 10, "warmup_steps": 2},
            "verify": {"bins": [str(world / "pairs.bin")], "every_steps": 10},
            "checkpoint": {"every_steps": 4},
            "log": {"every_steps": 1, "sinks": ["jsonl", "tensorboard"]},
            "precision": "fp32",
            "device": "cpu",
            "output": str(output),
        }
        for section, values in changes.items():
            tree[section].update(values)
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(tree))
        return Job(path, output)

    return make


@pytest.fixture(scope="session")
def whole(make_job, tmp_path_factory):
    """The run of ``make_job`` without a fault."""
    job = make_job(tmp_path_factory.mktemp("whole"))
    job.finish()
    return job


@pytest.fixture
def job(make_job, tmp_path):
    """The same run in a folder of its own, not begun."""
    return make_job(tmp_path)
