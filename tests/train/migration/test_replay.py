"""arcface_torch's own training, replayed: its losses, kept as numbers, against ours from the same weights and batches.

``replayed_losses.json`` holds what ``train_v2.py`` (full softmax, ArcFace, SGD with momentum, weight decay, clipping,
float32) gave with the weights and batches of ``scene``. Two codes that round otherwise part: at a rate of 1e-3 by 4e-5
after 20 steps (on other processors by 1.3e-4) and by 3e-3 after 60, at 1e-4 by 4e-5 after 100. The other gradient of
the margin changes them by .5 within 20 steps, a clip that is a fifth off by .06.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evaluate.features.ranks import World
from pipelines.loading.batch import Batch
from tests.train.migration import scene
from tests.train.migration.theirs import checkout
from train.config import load_config
from train.trainer import Trainer

REPLAYED = json.loads(Path(__file__).with_name("replayed_losses.json").read_text())["runs"]
IMAGES = 96  # of the data set, which is not looked at: batches are the scene's


def replay(path, steps):
    """Our losses."""
    trainer = Trainer(load_config(path), World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))
    scene.set_weights(trainer.learner.backbone)
    scene.set_centres(trainer.learner.head.weight)
    losses = []
    while trainer.step < steps:
        trainer.meter.window.zero_()
        trainer.train_step(iter([the_batch(trainer)]))
        losses.append(float(trainer.meter.window[0]))
    trainer.loader.close()
    trainer.folder.release()
    return losses


def the_batch(trainer):
    size = trainer.config.data.batch_size
    images, labels = scene.batch(trainer.step, size, trainer.learner.head.num_classes, trainer.config.model.input_size)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, torch.arange(size), torch.zeros(size, 1))


@pytest.mark.parametrize("run", ["first steps", pytest.param("a hundred steps", marks=pytest.mark.slow)])
def test_losses_are_theirs(migrate, ranks, tmp_path, faces, run):
    theirs = REPLAYED[run]
    losses, given = theirs["losses"], theirs["config"]
    path = checkout(tmp_path, **given, rec=str(faces), val_targets=[])
    overrides = ["schedule.power=1", f"schedule.epochs={theirs['steps'] * given['batch_size'] / IMAGES}"]
    overrides += [f"model.input_size={theirs['input_size']}", "data.threads=1", f"output={tmp_path / 'run'}"]
    out = tmp_path / "mine.yaml"
    migrate(path, *overrides, "--out", out)
    (ours,) = ranks(1, replay, str(out), len(losses))
    assert ours == pytest.approx(losses, rel=0, abs=1e-3)
    assert max(losses) - min(losses) > 5  # they are of a training
