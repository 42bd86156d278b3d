"""Centres of arcface_torch's files, which are written here as it writes them, on any number of ranks."""

import pytest
import torch

from losses import PartialFC, create_margin
from losses.head.arcface_torch import load_arcface_torch

CENTRES = torch.arange(11 * 4, dtype=torch.float32).reshape(11, 4)


def write(folder, ranks, older=False, centres=CENTRES):
    """The files of a run of arcface_torch: C // R centres on each rank, and one more on the first C % R."""
    folder.mkdir(exist_ok=True)
    start = 0
    for rank in range(ranks):
        count = len(centres) // ranks + (rank < len(centres) % ranks)
        weight = centres[start : start + count].clone()
        start += count
        if older:
            torch.save({"weight": weight, "weight_mom": torch.zeros_like(weight)}, folder / f"softmax_fc_gpu_{rank}.pt")
            continue
        parameter = torch.nn.Parameter(weight.clone())
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with torch.no_grad():
            parameter.copy_(weight)
        checkpoint = {
            "epoch": 3,
            "global_step": 1000,
            "state_dict_backbone": {"conv1.weight": torch.zeros(3, 3)},
            "state_dict_softmax_fc": {"weight": parameter.detach()},
            "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": {"last_epoch": 1, "_last_lr": [0.1]},
        }
        torch.save(checkpoint, folder / f"checkpoint_gpu_{rank}.pt")
    (folder / "model.pt").write_bytes(b"")
    return folder


def load(folder, classes=11):
    head = PartialFC(create_margin("arcface"), 4, classes)
    load_arcface_torch(head, folder)
    return head.weight.detach()


@pytest.mark.parametrize("older", [False, True])
def test_any_number_of_ranks_to_any_other(ranks, tmp_path, older):
    for theirs in (1, 2, 3, 4, 8, 16):
        folder = write(tmp_path / str(theirs), theirs, older)
        assert torch.equal(load(folder), CENTRES)
        for ours in (2, 4):
            assert torch.equal(torch.cat(ranks(ours, load, folder)), CENTRES)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither checkpoint_gpu_0.pt"):
        load(tmp_path)
    folder = write(tmp_path / "run", 4)
    with pytest.raises(ValueError, match=r"rank 0 of 4 has \(3, 4\) of 12"):
        load(write(folder, 4, centres=CENTRES[:8]), 12)
    write(folder, 4)
    (folder / "checkpoint_gpu_2.pt").rename(folder / "other")
    with pytest.raises(FileNotFoundError, match="rank 2"):
        load(folder)
    others = ({"state_dict_softmax_fc": {"weight": weight}} for weight in (5, torch.tensor(5.0), torch.zeros(3)))
    for content in ({"epoch": 3}, {"state_dict_softmax_fc": 5}, [1, 2], CENTRES, *others):
        torch.save(content, folder / "checkpoint_gpu_2.pt")
        with pytest.raises(ValueError, match=r"checkpoint_gpu_2.pt is no checkpoint of arcface_torch"):
            load(folder)
    (folder / "checkpoint_gpu_2.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="no checkpoint"):
        load(folder)


def test_nothing_is_executed(tmp_path):
    """A pickle that would call a function is refused."""
    folder = write(tmp_path, 1)

    class Call:
        def __reduce__(self):
            return print, ("called",)

    torch.save({"state_dict_softmax_fc": {"weight": Call()}}, folder / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match="no checkpoint"):
        load(folder)
