"""What all ranks do together."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.distributed import (
    _fresh,
    agreed,
    average_batch_statistics,
    average_gradients,
    first_of_node,
    joined,
    limit_waiting,
)
from train.stop import Stopped


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


def agreeing(failing):
    """What the ranks say, or how this one ends, where ``failing`` ranks cannot do it."""
    rank = dist.get_rank()

    def action():
        if rank in failing:
            raise UserError(f"rank {rank} cannot")
        return rank

    try:
        return agreed(action)
    except (SystemExit, ValueError) as end:
        return type(end).__name__, str(end)


def test_what_fails_on_one_rank_ends_all_and_is_told_once(ranks):
    assert ranks(3, agreeing, []) == [[0, 1, 2]] * 3
    assert ranks(3, agreeing, [1]) == [("SystemExit", "2"), ("UserError", "rank 1 cannot"), ("SystemExit", "2")]
    assert ranks(1, agreeing, [0]) == [("UserError", "rank 0 cannot")]


def in_turn(path):
    rank = dist.get_rank()
    os.environ["LOCAL_RANK"] = str(rank)
    with first_of_node(World(torch.device("cpu"), rank, dist.get_world_size())):
        before = path.exists()
        time.sleep(0.2 * (rank == 0))
        path.touch()
    return before


def test_one_process_of_a_node_goes_first(ranks, tmp_path):
    assert ranks(3, in_turn, tmp_path / "index") == [False, True, True]


def test_each_attempt_has_a_store_of_its_own(monkeypatch):
    """Ranks come and go: two, one after a failure, one that came back as a second (no failure), and two again."""
    whole = dist.HashStore()
    found = []
    for restart, size in ((0, 2), (1, 1), (1, 2), (1, 2)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        stores = [_fresh(whole, rank, size) for rank in range(size)]
        found.append(stores[-1].check(["address"]))
        stores[0].set("address", "here")
        assert all(store.check(["address"]) for store in stores)
    assert not any(found)


def limits(seconds):
    limit_waiting(seconds)
    began = time.perf_counter()
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.ones(1))
    else:
        time.sleep(4 * seconds)
    return time.perf_counter() - began


def test_a_rank_does_not_wait_for_ever(ranks):
    waited, _ = ranks(2, limits, 1.0)
    assert 0.5 < waited < 4


def test_joined_leaves_only_at_a_common_end(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu", 60) as world:
        assert world == World(torch.device("cpu"), 0, 1) and dist.is_initialized()
    assert not dist.is_initialized()
    for error in (ValueError("a mistake"), RuntimeError("a bug")):
        with pytest.raises(type(error)), joined("cpu", 60):
            raise error
        assert dist.is_initialized(), "leaving would wait for the others"
        dist.destroy_process_group()
    with pytest.raises(Stopped), joined("cpu", 60):
        raise Stopped(15)
    assert not dist.is_initialized()


def test_torch_takes_the_cores_of_its_rank(monkeypatch):
    """Three that no other rank may run on, whatever the number of ranks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    before = torch.get_num_threads()
    try:
        with joined("cpu", 60):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
