"""Verification within a run: what cannot work is known at its start, and nothing is lost by it."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.features.ranks import World
from models import create_model
from pipelines.sources.bins import write_bin
from tests.command import called
from train.config import load_config
from train.run import main
from train.trainer import Trainer
from train.verification import Verifier

SMALL = ["model={name: mbf, width: 0.0625, embedding_size: 16, input_size: 32}"]


def jpeg(seed):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_pairs(path, count=12, cut=None):
    path.parent.mkdir(exist_ok=True)
    images = [jpeg(number // 2 if number % 4 < 2 else number) for number in range(2 * count)]
    if cut is not None:
        images[cut] = images[cut][: len(images[cut]) // 2]
    write_bin(path, images, np.arange(count) % 2 == 0)
    return path


def accuracies(output):
    """(step, {set: accuracy}) of each verification in the log."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [
        (line["step"], {name: value for name, value in line.items() if name.startswith("verify/")})
        for line in lines
        if "verify_seconds" in line
    ]


def test_sets_of_one_name_are_both_verified(config, finish, tmp_path):
    paths = [write_pairs(tmp_path / folder / "lfw.bin") for folder in ("a", "b")]
    finish(config, f"verify.bins=[{paths[0]},{paths[1]}]", "schedule.epochs=1")
    ((step, found),) = accuracies(tmp_path / "run")
    assert step == 6 and found.keys() == {"verify/a/lfw", "verify/b/lfw"}


def best_at_the_start(config, *overrides):
    trainer = Trainer(load_config(config, overrides), World(torch.device("cpu"), 0, 1))
    trainer.loader.close()
    trainer.folder.release()
    return trainer.best.item()


def test_what_was_best_on_other_sets_is_not_the_best(config, finish, tmp_path, ranks):
    """A harder set beside them, and best.pt would stay for good."""
    paths = [write_pairs(tmp_path / folder / "lfw.bin") for folder in ("a", "b")]
    finish(config, f"verify.bins=[{paths[0]}]", "schedule.epochs=1", "verify.every_steps=2")
    for bins, kept in ((paths[:1], True), (paths, False)):
        sets = ",".join(map(str, bins))
        (best,) = ranks(1, best_at_the_start, config, f"verify.bins=[{sets}]", "schedule.epochs=2")
        assert (best >= 0) == kept


def test_xqlfw_is_judged_while_training_as_afterwards(config, tmp_path):
    paths = [
        write_pairs(tmp_path / folder / f"{name}.bin") for folder, name in (("xqlfw", "lfw"), ("a", "xqlfw_aligned"))
    ]
    settings = load_config(config, [f"verify.bins=[{paths[0]},{paths[1]}]", *SMALL])
    results = Verifier(settings, World(torch.device("cpu"), 0, 1))(
        create_model("mbf", width=0.0625, embedding_size=16, input_size=32)
    )
    steps = {name: result.thresholds[1] for name, result in results.items()}
    assert steps == {"lfw": 0.01, "xqlfw_aligned": 0.002}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_bad_set_is_named_by_the_rank_that_has_the_image(config, tmp_path, world):
    path = write_pairs(tmp_path / "sets" / "cut.bin", cut=17)
    settings = load_config(config, [f"verify.bins=[{path}]", "verify.batch_size=5", *SMALL])
    for rank in range(world):
        place = World(torch.device("cpu"), rank, world)
        if rank != 17 % world:
            assert Verifier(settings, place).sets.keys() == {"cut"}
            continue
        with pytest.raises(ValueError, match=f"{path}, image 17: does not decode"):
            Verifier(settings, place)


@pytest.mark.parametrize("options, words", [({"count": 5}, "bad.bin has 5 pairs, too few"), ({"cut": 3}, "image 3")])
def test_a_set_that_cannot_be_used_ends_the_run_before_it_begins(config, tmp_path, options, words):
    path = write_pairs(tmp_path / "sets" / "bad.bin", **options)
    ended = called(main, "--config", config, f"verify.bins=[{path}]", *SMALL)
    assert ended.code == 2 and str(path) in ended.error and words in ended.error
    assert not (tmp_path / "run").exists()


def precisions(path, overrides):
    """The dtypes in which a run of bf16 on a GPU, and one on a CPU, verify before their end and at it."""
    trainer = Trainer(load_config(path, overrides), World(torch.device("cpu"), 0, 1))
    asked = []
    trainer.verifier, trainer.log = Asked(asked), None
    trainer.meter.start(0)
    for device in ("cuda", "cpu"):
        trainer.world = World(torch.device(device))
        for step in (2, trainer.learning_rate.total):
            trainer.step = step
            trainer._verify()
    trainer.folder.release()
    return asked


class Asked:
    """Verification that notes in which dtype."""

    sets = {"lfw": ()}

    def __init__(self, asked):
        self.asked = asked

    def __call__(self, backbone, autocast):
        self.asked.append(autocast)
        return {"lfw": SimpleNamespace(accuracy=0.5)}


def test_the_last_verification_is_in_float32(config, ranks):
    """As that of the command, whose figures its own then are."""
    assert ranks(1, precisions, str(config), ["precision=bf16", *SMALL]) == [[torch.bfloat16, None, None, None]]


class Broken:
    """Verification that fails for a reason that nobody could know before."""

    sets = {"lfw": ()}

    def __call__(self, backbone, autocast):
        raise MemoryError("while verifying")


def train_until_it_breaks(path, overrides):
    """Steps of the checkpoints that there are when the first verification fails."""
    trainer = Trainer(load_config(path, overrides), World(torch.device("cpu"), 0, 1))
    trainer.verifier = Broken()
    with pytest.raises(MemoryError):
        trainer.fit()
    trainer.loader.close()
    return [checkpoint.name for checkpoint in trainer.checkpoints.all()]


def test_a_checkpoint_is_saved_before_its_step_is_verified(config, finish, tmp_path, ranks):
    """A run that ends while it verifies step 4 goes on from there, with the verification that it owes."""
    path = write_pairs(tmp_path / "sets" / "lfw.bin")
    settings = [f"verify.bins=[{path}]", "verify.every_steps=4", f"output={tmp_path}/run", *SMALL]
    assert ranks(1, train_until_it_breaks, str(config), settings) == [["step_000000004"]]
    finish(config, *settings)
    assert [step for step, _ in accuracies(tmp_path / "run")] == [4, 8, 12, 16, 18]
    assert (tmp_path / "run" / "best.pt").exists()
    finish(config, *settings)
    assert [step for step, _ in accuracies(tmp_path / "run")] == [4, 8, 12, 16, 18]
