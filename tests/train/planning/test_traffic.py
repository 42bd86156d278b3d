"""What training steps hand to torch.distributed on real ranks, against what is predicted."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from models.registry import BACKBONES
from tests.evaluate.networks import write_onnx
from train.build import open_data
from train.config import load_config
from train.distributed import average_batch_statistics
from train.planning.devices import DEVICES, links_of
from train.planning.traffic import Exchange, step_exchanges
from train.stop import Votes
from train.trainer import Trainer

SIDE, SIZE = 32, 16


class Parts(nn.Module):
    """A small backbone that every recipe finds what it asks for in."""

    patch_size = 8

    def __init__(self, embedding_size, input_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.BatchNorm2d(4), nn.Flatten())
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(4 * (input_size // 8) ** 2, embedding_size)

    def trunk(self, images):
        return self.layers(images)

    def head(self, features):
        return self.last(self.dropout(features))

    def forward(self, images):
        return self.head(self.trunk(images))

    def forward_patches(self, images):
        features = self.trunk(images)
        patches = features.unflatten(1, (4, -1)).mean(1)
        return self.head(features), patches, patches.abs()


class Counted(TorchDispatchMode):
    """Notes every collective, whoever calls it: its kind, and the bytes of the tensor that is summed or gathered."""

    NAMES = {
        "allreduce_": "all_reduce",
        "_allgather_base_": "all_gather",
        "allgather_": "all_gather",
        "_reduce_scatter_base_": "reduce_scatter",
        "broadcast_": "broadcast",
    }

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            kind = self.NAMES[func._opname]
            message = args[1] if kind == "reduce_scatter" else args[0]
            self.calls[kind, sum(tensor.nbytes for tensor in torch.utils._pytree.tree_leaves(message))] += 1
        return func(*args, **(kwargs or {}))


def counted_step(config, overrides):
    """The collectives of a rank's third step, and of what comes between steps, counted and predicted."""
    BACKBONES["parts"] = Parts
    ranks = dist.get_world_size()
    config = load_config(config, overrides)
    trainer = Trainer(config, World(torch.device("cpu"), dist.get_rank(), ranks))
    batches, votes = iter(trainer.loader), Votes()
    for _ in range(2):  # in the first, DistributedDataParallel chooses its buckets
        trainer.train_step(batches)
    with Counted() as step:
        trainer.train_step(batches)
        votes.exchange(0, False, False)
    votes.close()
    source = open_data(config.data).source
    with Counted() as verification:
        average_batch_statistics(trainer.learner.backbone)
        Embedder(trainer.learner.backbone, SIDE, trainer.world, batch_size=16)(source)
    trainer.loader.close()
    trained = sum(p.numel() for p in trainer.learner.network.parameters() if p.requires_grad)
    buffers = sum(b.numel() for name, b in trainer.learner.backbone.named_buffers() if "running" in name)
    rows = -(-len(source) // ranks) * ranks  # equal shares, the last ones filled up
    beside = {("all_reduce", 8 * buffers): 1, ("all_gather", 8 * SIZE * rows): 1}  # as docs/scaling.md has them
    return [
        (step.calls, calls(step_exchanges(config, ranks, parameters=trained))),
        (verification.calls, Counter(beside if ranks > 1 else {})),
    ]


def calls(exchanges):
    """Collectives as ``Counted`` notes them."""
    noted = Counter()
    for each in exchanges:
        noted[each.collective, each.bytes // each.calls] += each.calls
    return noted


CASES = {
    "plain": [],
    "sampled": ["head.sample_rate=.5", "head.margin=cosface", "head.m=.35"],
    "large scale": ["head.s=100"],
    "dense": ["head.mode=dense", "head.s=16"],
    "adaface": ["head.margin=adaface", "head.m=.4"],
    "drawn margins": ["head={margin: elasticface}"],
    "hard negatives": ["head.margin=curricularface", "head.m=.5"],
    "past embeddings": ["head.margin=broadface", "head.m=.5", "head.queue_size=40"],
    "few past embeddings": ["head.margin=broadface", "head.m=.5", "head.queue_size=5"],
    "no softmax": ["head={margin: scf}"],
    "sums of softplus": ["head={margin: uniface}"],
    "topofr": ["recipe={name: topofr, gather: true}"],
    "topofr, each rank's own": ["recipe={name: topofr}"],
    "contraface": ["recipe={name: contraface}"],
    "contraface, sampled": ["recipe={name: contraface}", "head.sample_rate=.5"],
    "contraface, gathered": ["recipe={name: contraface, gather: true}"],
    "transface": ["recipe={name: transface}"],
    "distill": ["recipe={name: distill, teacher: TEACHER}"],
    "distill alone": ["recipe={name: distill, teacher: TEACHER, margin: 0}", "head.sample_rate=.5"],
    "accumulated": ["optim.accumulate=2", "head.sample_rate=.5"],
    "compressed": ["optim.compress=fp16"],
}


def check(ranks, number, config, overrides):
    teacher = write_onnx(config.parent / "teacher.onnx", size=SIDE, embedding_size=SIZE)
    overrides = [override.replace("TEACHER", str(teacher)) for override in overrides]
    common = ["model.name=parts", f"data.batch_size={48 // number // 2}", "verify.bins=[]"]
    for rank in ranks(number, counted_step, str(config), [*common, *overrides]):
        for counted, predicted in rank:
            assert counted == predicted


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_plain_step(ranks, config, number):
    check(ranks, number, config, CASES["plain"])


@pytest.mark.parametrize("case", list(CASES)[1:])
def test_steps_of_two_ranks(ranks, config, case):
    check(ranks, 2, config, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [4, 8])
def test_steps_of_more_ranks(ranks, config, number, case):
    check(ranks, number, config, CASES[case])


def passed_on(ranks, rounds):
    """The most that a rank passes on where each of as many pieces goes round the ring ``rounds`` times, less its end.

    A piece that starts at a rank is summed on its way to the rank before it, and told to all from there.
    """
    sent = Counter()
    for piece in range(ranks):
        for hop in range(rounds * (ranks - 1)):
            sent[(piece + hop) % ranks] += 1
    return max(sent.values()), min(sent.values())


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("collective, rounds", [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)])
def test_bytes_sent_round_a_ring(ranks, collective, rounds):
    most, least = passed_on(ranks, rounds)
    assert most == least == Exchange("", collective, ranks).sent(ranks)


def test_seconds_of_an_exchange():
    links = links_of(DEVICES["h100"], "ethernet25")
    large = Exchange("", "all_reduce", 10**9)
    # 8 ranks pass on 2·7/8 GB at .8 of NVLink's 450 GB/s; 16 ranks share each node's 25 Gbit/s.
    assert large.seconds(8, links) == pytest.approx(1.75e9 / 360e9, rel=0.02)
    assert large.seconds(16, links) == pytest.approx(1.875e9 / 2.5e9, rel=0.02)
    assert large.seconds(1, links) == 0
    # A short sum takes the tree: 7 hops in a node and 6 steps among 64 nodes, up and down.
    short = Exchange("", "all_reduce", 4)
    assert short.seconds(512, links) == pytest.approx(2 * (7 * 1.9e-6 + 6 * 20e-6), rel=1e-3)
    assert short.seconds(512, links) < Exchange("", "all_gather", 4).seconds(512, links)
