"""What all ranks do together."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from train.distributed import average_batch_statistics, start
from train.optim import average_gradients


def averaged_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].running_mean.fill_(dist.get_rank() + 1)
    model[0].running_var.copy_(torch.tensor([dist.get_rank(), 4.0]))
    average_batch_statistics(model)
    return model[0].running_mean.tolist(), model[0].running_var.tolist()


def test_batch_statistics_are_averaged(ranks):
    assert ranks(2, averaged_statistics) == [([1.5, 1.5], [0.5, 4.0])] * 2


def averaged_gradients():
    first, second = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))
    first.grad = torch.full((2, 2), dist.get_rank() + 1.0)
    if dist.get_rank():  # the other rank's step had no use for it
        second.grad = torch.tensor([3.0])
    average_gradients([first, second])
    average_gradients([])
    return first.grad.tolist(), second.grad.tolist()


def test_gradients_are_averaged(ranks):
    assert ranks(2, averaged_gradients) == [([[1.5, 1.5], [1.5, 1.5]], [1.5])] * 2


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    with pytest.raises(ValueError, match="1000 processes on this machine, which has"):
        start("cuda")
