"""Centres that begin at the means of their classes: against a loop over the images, on any number of ranks."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from pipelines.loading.loader import read_once
from tests.pipelines.face_source import CLASSES, COUNT, LABELS, FaceSource
from tests.train.plain_run import Normalised
from tests.train.support import learnt
from train import class_means

SIZE, NUMBERS = 48, 6


def network():
    torch.manual_seed(2)
    return Normalised(NUMBERS, SIZE).train()


def new_head(classes=CLASSES):
    return PartialFC(create_margin("arcface"), NUMBERS, classes, seed=4)


def set_means(head, source, world, first=0, model=None, **options):
    given = {"image_size": SIZE, "threads": 1, "autocast": None, "max_bad_fraction": 0.1} | options
    class_means.set_class_means(head, model or network(), source, world, first=first, **given)


def by_a_loop(classes, images=16, left_out=()):
    """Directions of the classes: image by image, in float64."""
    model, source = network().eval().double(), FaceSource()
    directions = []
    for label in classes:
        total = torch.zeros(NUMBERS, dtype=torch.float64)
        for index in np.flatnonzero(label == LABELS)[:images]:
            if index not in left_out:
                (batch,) = read_once(source, [index], batch_size=1, image_size=SIZE)
                for view in (batch.images, batch.images.flip(3)):
                    total += F.normalize(model(view.double()))[0].detach()
        directions.append(F.normalize(total, dim=0))
    return torch.stack(directions).float()


def on_rank(size, rank_source, first, batch):
    import torch.distributed as dist

    class_means._BATCH = batch
    head, world = new_head(), World(torch.device("cpu"), dist.get_rank(), size)
    set_means(head, rank_source, world, first)
    return head.weight.detach()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("batch", [64, 5])
def test_means_on_any_number_of_ranks(ranks, size, batch):
    found = torch.cat(ranks(size, on_rank, size, FaceSource(), 2, batch))
    start = new_head().weight.detach()
    assert torch.equal(found[:2], start[:2])  # centres of another run
    torch.testing.assert_close(found[2:], by_a_loop(range(2, CLASSES)) * start[2:].norm(dim=1, keepdim=True))


def test_the_first_images_of_a_class(monkeypatch):
    monkeypatch.setattr(class_means, "IMAGES", 3)
    head = new_head()
    set_means(head, FaceSource(), World(torch.device("cpu")))
    torch.testing.assert_close(F.normalize(head.weight.detach()), by_a_loop(range(CLASSES), images=3))


def test_a_network_gets_the_landmarks_of_its_images():
    class Moved(Normalised):
        """Embeddings that turn with the landmarks."""

        wants_landmarks = True

        def forward(self, images, landmarks=None):
            moved = torch.zeros(len(images), 1) if landmarks is None else landmarks[..., 1].mean(1)[:, None]
            return super().forward(images) + 100 * moved * torch.eye(NUMBERS)[0]

    torch.manual_seed(2)
    head, model = new_head(), Moved(NUMBERS, SIZE)

    def landmarks(indices):
        return np.full((len(indices), 5, 2), 0.5, np.float32) * (1 - 2 * (LABELS[indices] % 2))[:, None, None]

    set_means(head, FaceSource(), World(torch.device("cpu")), model=model, landmarks=landmarks)
    turned = F.normalize(head.weight.detach())[:, 0]
    assert (turned[::2] > 0.9).all() and (turned[1::2] < -0.9).all()


def test_images_that_cannot_be_read_and_classes_without_any(caplog):
    bad = {8: b"no image", 9: b""}
    head = new_head(CLASSES + 2)
    start = head.weight.detach().clone()
    set_means(head, FaceSource(bad), World(torch.device("cpu")))
    assert torch.equal(head.weight[CLASSES:], start[CLASSES:])
    torch.testing.assert_close(F.normalize(head.weight.detach()[:CLASSES]), by_a_loop(range(CLASSES), left_out=bad))
    assert sum("a bad image" in line for line in caplog.messages) == 2
    with pytest.raises(ValueError, match="max_bad_fraction"):
        set_means(new_head(), FaceSource(bad), World(torch.device("cpu")), max_bad_fraction=0.02)


def test_a_network_that_has_diverged():
    model = network()
    torch.nn.init.constant_(model.layers[0].bias, float("nan"))
    with pytest.raises(ValueError, match="are not finite: is its file whole"):
        set_means(new_head(), FaceSource(), World(torch.device("cpu")), model=model)
    assert model.training and len(LABELS) == COUNT


def test_new_classes_beside_old_ones(config, finish, tmp_path, faces):
    """Old centres are an earlier run's, new ones look at their images; a run that goes on leaves them alone."""
    for identity in sorted(faces.iterdir())[:5]:
        shutil.copytree(identity, tmp_path / "fewer" / identity.name)
    finish(config, f"output={tmp_path}/old", f"data.train={tmp_path}/fewer", "schedule.epochs=2")
    start = [f"model.init_from={tmp_path}/old", f"head.init_from={tmp_path}/old", "optim.lr=1e-9"]
    still = ["optim.weight_decay=0", "schedule.epochs=1", "head.init=class_means"]
    finish(config, f"output={tmp_path}/new", *start, *still)
    old, new = learnt(tmp_path / "old")["centres"], learnt(tmp_path / "new")["centres"]
    assert torch.allclose(new[:5], old, atol=1e-6)
    images = F.normalize(new)[5:]
    finish(config, f"output={tmp_path}/all", f"model.init_from={tmp_path}/old", "optim.lr=1e-9", *still)
    every = F.normalize(learnt(tmp_path / "all")["centres"])
    torch.testing.assert_close(every[5:], images, atol=1e-5, rtol=0)
    assert not torch.allclose(every[:5], F.normalize(old), atol=0.01)
