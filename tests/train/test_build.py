"""What a run refuses to begin with, for a reason that only its parts know."""

import pytest
import torch

from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from train.build import build_backbone
from train.checkpoint import Checkpoints
from train.config import Config
from train.fine_tune import load_centres, stored_classes

HERE = World(torch.device("cpu"), 0, 1)


def config(**data):
    model = {"name": "mbf", "width": 0.0625, "embedding_size": 8, "input_size": 32}
    return Config.model_validate({"data": {"train": "faces", **data}, "model": model, "output": "run"})


def test_one_image_has_no_batch_statistics():
    with pytest.raises(ValueError, match="data.batch_size is 1, but mbf normalises"):
        build_backbone(config(batch_size=1), HERE, fresh=True)
    images = torch.randn(2, 3, 32, 32)
    assert build_backbone(config(batch_size=2), HERE, fresh=True)(images).isfinite().all()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"step": 3}', "null"])
def test_a_checkpoint_that_does_not_say_what_it_is(tmp_path, content):
    folder = tmp_path / "checkpoints" / "step_000000003"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(content)
    with pytest.raises(ValueError, match="meta.json does not say the num_classes") as raised:
        Checkpoints.meta(folder, "num_classes", "step")
    assert str(folder) in str(raised.value)
    with pytest.raises(ValueError, match="meta.json does not say the num_classes"):
        stored_classes(tmp_path)


def test_centres_that_are_not_finite(tmp_path):
    centres = torch.ones(3, 4)
    centres[1, 2] = torch.nan
    torch.save({"state_dict_softmax_fc": {"weight": centres}}, tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match=f"{tmp_path} has class centres that are not finite"):
        load_centres(PartialFC(create_margin("arcface"), 4, 3), tmp_path)
