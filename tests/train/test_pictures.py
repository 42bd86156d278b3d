"""What sinks get to see of a run: the first batch, and the pairs that its network gets most wrong."""

import gc
import io
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluate.features.ranks import World
from models.registry import BACKBONES
from pipelines.common.errors import UserError
from pipelines.loading.batch import Batch
from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from tests.train.plain_run import Plain
from tests.train.test_verification import write_pairs
from train.config import load_config
from train.pictures import batch_sheet, showing_first
from train.progress import SINKS, RunLog
from train.trainer import Trainer


def images_of(folder):
    """What TensorBoard shows: [(step, picture)] by name."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(e.step, Image.open(io.BytesIO(e.encoded_image_string))) for e in events.Images(name)]
        for name in events.Tags()["images"]
    }


def fit(config, *overrides):
    """Run a config."""
    BACKBONES["plain"] = Plain
    Trainer(load_config(config, overrides), World(torch.device("cpu"), 0, 1)).fit()


def test_a_run_shows_its_first_batch_and_its_last_worst_pairs(ranks, config, faces, tmp_path, monkeypatch):
    """Also one that is interrupted and goes on; the pixels are those that the loader gives at step 0."""
    lfw = write_pairs(tmp_path / "sets" / "lfw.bin")
    settings = [f"verify.bins=[{lfw}]", "verify.every_steps=4", "log.sinks=[tensorboard]"]
    for epochs in (1, 2):
        ranks(1, fit, config, *settings, f"schedule.epochs={epochs}")
    found = images_of(tmp_path / "run")
    assert [step for step, _ in found["batch"]] == [1]
    assert [step for step, _ in found["worst/lfw"]] == [6, 12]  # a run's end, twice

    monkeypatch.setitem(BACKBONES, "plain", Plain)
    given = load_config(config, settings)
    loader = Loader(open_source(faces), batch_size=16, seed=given.seed, augment=given.data.augment, image_size=32)
    images = next(loader).images
    loader.close()
    picture = np.asarray(found["batch"][0][1])
    assert picture.shape == (2 * 32, 12 * 32, 3)  # 16 images of 32 pixels
    for row, image in enumerate(images.numpy()):
        top, left = 32 * (row // 12), 32 * (row % 12)
        shown = picture[top : top + 32, left : left + 32].transpose(2, 0, 1)
        assert np.abs(shown / 127.5 - 1 - image).max() < 0.005


def test_a_sheet_of_any_number_of_images():
    white_to_black = torch.linspace(1, -1, 100).reshape(100, 1, 1, 1).expand(100, 3, 4, 4)
    for count, size in ((1, (4, 4)), (13, (48, 8)), (100, (48, 24))):
        picture = batch_sheet(white_to_black[:count].bfloat16())
        assert picture.size == size and picture.getpixel((0, 0)) == (255, 255, 255)


def test_the_first_batch_is_shown_once_and_not_held():
    batches = [Batch(torch.full((1, 3, 2, 2), float(n)), *[torch.zeros(1)] * 3) for n in range(3)]
    seen, shown, first = [], [], weakref.ref(batches[0])
    following = showing_first(iter(batches), shown.append)
    seen.append(next(following).images[0, 0, 0, 0].item())
    assert len(shown) == 1 and shown[0] is batches[0].images
    batches.clear()
    seen.extend(batch.images[0, 0, 0, 0].item() for batch in following)
    gc.collect()
    assert first() is None and seen[0] == 0


class Pictures:
    """A sink of one's own that takes pictures."""

    def __init__(self, folder):
        self.got = []

    def log(self, record):
        pass

    def show(self, name, step, picture):
        self.got.append((name, step, picture.size))

    def close(self):
        pass


def test_only_those_sinks_get_pictures_that_are_to(tmp_path, monkeypatch):
    made = {}
    for name in ("a", "b"):
        monkeypatch.setitem(SINKS, name, lambda folder, name=name: made.setdefault(name, Pictures(folder)))
    log = RunLog(tmp_path, 10, 0, sinks=["jsonl", "a", "b"], pictures=["b", "tensorboard"])
    log.show("batch", 1, lambda: Image.new("RGB", (3, 2)))
    log.close()
    assert made["b"].got == [("batch", 1, (3, 2))] and made["a"].got == []

    log = RunLog(tmp_path, 10, 0, sinks=["jsonl", "a"])
    log.show("batch", 1, lambda: pytest.fail("drawn for nobody"))
    log.close()
    with pytest.raises(UserError, match="log.pictures: jsonl takes no pictures"):
        RunLog(tmp_path, 10, 0, sinks=["a", "jsonl"], pictures=["jsonl"])
