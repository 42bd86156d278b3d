"""Centres of an earlier run as the start of a new one."""

import pytest
import torch
import torch.distributed as dist

from evaluate.features.ranks import World
from losses import PartialFC, create_margin
from train.build import build_head
from train.checkpoint import Checkpoints
from train.fine_tune import load_centres, stored_classes
from train.sections.head import Head


def new_head(classes=5):
    return PartialFC(create_margin("arcface"), 4, classes)


def save(folder, centres):
    """A checkpoint of a run with these centres."""
    head = new_head(len(centres))
    with torch.no_grad():
        head.weight.copy_(centres[head.start : head.stop])
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(7, {"head": head}, {"num_classes": len(centres)})
    checkpoints.finish()


def test_centres_of_a_run_on_two_ranks(ranks, tmp_path):
    centres = torch.randn(5, 4)
    ranks(2, save, tmp_path, centres)
    assert stored_classes(tmp_path) == 5
    (loaded,) = ranks(1, loaded_weight, tmp_path)
    assert torch.equal(loaded, centres)


def loaded_weight(folder):
    head = new_head()
    load_centres(head, folder)
    return head.weight.detach()


def test_what_a_margin_begins_with_is_of_all_classes(ranks, tmp_path):
    """Of those of the earlier run and the new ones, as in a head that is made for them."""
    ranks(1, save, tmp_path, torch.randn(5, 4))
    for margin in ("uniface", "sphereface2"):
        (extended,), (fresh,) = (ranks(1, threshold, margin, folder) for folder in (tmp_path, None))
        assert extended == fresh


def threshold(margin, folder):
    head = Head.model_validate({"margin": margin, "init_from": folder and str(folder)})
    here = World(torch.device("cpu"))
    built = build_head(head, here, embedding_size=4, num_classes=500, entropy=False, half=False, seed=0, fresh=True)
    return built.margin.b.item()


def wrong_size(folder):
    with pytest.raises(ValueError, match="no centres of 3 numbers in .*step_000000007"):
        load_centres(PartialFC(create_margin("arcface"), 3, 5), folder)
    return dist.get_rank()


def test_embeddings_of_another_size(ranks, tmp_path):
    ranks(1, save, tmp_path, torch.ones(5, 4))
    assert ranks(1, wrong_size, tmp_path) == [0]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"step": 3}', "null"])
def test_a_checkpoint_that_does_not_say_its_classes(tmp_path, content):
    folder = tmp_path / "checkpoints" / "step_000000003"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(content)
    with pytest.raises(ValueError, match="meta.json does not say the num_classes"):
        stored_classes(tmp_path)


def test_no_run(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        stored_classes(tmp_path)


def placed(folder):
    try:
        load_centres(PartialFC(create_margin("arcface"), 4, 3), folder)
    except ValueError as error:
        return str(error)


def test_centres_that_are_not_finite(ranks, tmp_path):
    centres = torch.ones(3, 4)
    centres[1, 2] = torch.nan
    torch.save({"state_dict_softmax_fc": {"weight": centres}}, tmp_path / "checkpoint_gpu_0.pt")
    assert ranks(1, placed, tmp_path) == [f"{tmp_path} has class centres that are not finite"]
