"""Which class centres take part in a step of Partial FC (An et al., CVPR 2022, "Killing Two Birds with One Stone").

The draw is a pure function of (seed, step, labels): all positive classes take part, and every other class whose hash of
(seed, step, class) falls below a threshold. So 1 or 8 ranks draw the same negatives, a resumed run draws those of an
uninterrupted one, and each rank looks at its own shard only. The batches of a step share their negatives, as one large
batch would: the thresholds of batches with more and fewer positives differ, so that one sample holds the other.

How many classes are drawn is known on the device first. The number is sent to the host at once, and waited for when the
rows are asked for.

Differences from arcface_torch's version 2: there each rank draws its own share with the device's random state, momentum
and weight decay reach rows that were not drawn, and a batch with more positives than the quota makes the host wait. The
number of negatives is exact there and binomial here (300 000 of a million: ± 460), which spares the selection of the
smallest hashes among all classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipelines.common.transfers import HostCopy

ALIGNED = 128  # rows: products with multiples of it fill the tensor cores' blocks


@dataclass
class SampledClasses:
    """The rows of one rank's shard that take part in a step. ``index`` and ``active`` wait for their number.

    Attributes:
        drawn: (rows of the shard,) bool, which rows take part.
        position: (rows of the shard,) int64, where each row stands in ``order``.
        order: (rows of the shard,) int64, all rows: first those drawn, then the others, each in ascending order.
        counts: (2,) how many rows are drawn, and how many of them for their labels alone.
        aligned: the length of ``index`` is a multiple of it, where the shard has so many rows.
        exact: whether the first of ``counts`` is the number itself; else it is an upper bound.
    """

    drawn: Tensor
    position: Tensor
    order: Tensor
    counts: HostCopy | Sequence[int]
    aligned: int
    exact: bool = True

    @cached_property
    def numbers(self) -> Sequence[int]:
        """``counts`` on the host."""
        return self.counts.result().tolist() if isinstance(self.counts, HostCopy) else self.counts

    @cached_property
    def index(self) -> Tensor:
        """(k,) int64, rows of the shard, all different: those drawn, and what fills up to a multiple of ``aligned``."""
        return self.order[: -(-self.numbers[0] // self.aligned) * self.aligned]

    @cached_property
    def active(self) -> Tensor | None:
        """(k,) bool, which rows of ``index`` take part; None if all do."""
        return None if self.exact and len(self.index) == self.numbers[0] else self.drawn[self.index]


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on int64; products wrap, shifts are made logical."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def class_scores(start: int, stop: int, seed: int, step: int, device: torch.device) -> Tensor:
    """(stop - start,) int64 in [0, 2^63): a hash of (seed, step, class) for the classes [start, stop)."""
    key = _mix(_mix(torch.tensor(seed)) + step)  # stays on the host: a copy to the device would wait for it
    golden = -0x61C8864680B583EB  # 2^64 / golden ratio as int64: SplitMix64's increment
    return _mix(torch.arange(start, stop, device=device) * golden + key) & (2**63 - 1)


def draw(
    labels: Tensor,
    num_classes: int,
    start: int,
    stop: int,
    sample_rate: float,
    seed: int,
    step: int,
    aligned: int | None = None,
) -> SampledClasses:
    """Sample classes: all positives, and each other class with the chance that makes up ``sample_rate * num_classes``.

    Where the positives alone exceed that quota they are all taken and nothing else is.

    Args:
        labels: (B,) int64 classes of the global batch; -1 is no class.
        start, stop: the shard's classes, [start, stop).
        aligned: see ``SampledClasses``; None for 128, on a CPU 1.
    """
    device, local, quota = labels.device, stop - start, sample_rate * num_classes
    ordered = labels.sort().values
    distinct = (ordered.diff(prepend=ordered.new_full((1,), -1)) != 0).sum().double()
    chance = ((quota - distinct) / (num_classes - distinct)).clamp(0, 1 - 2**-53)  # -inf where all are positives
    drawn = torch.empty(local + 1, dtype=torch.bool, device=device)  # the last is for labels of other shards
    torch.lt(class_scores(start, stop, seed, step, device), (chance * 2**63).long(), out=drawn[:local])
    by_chance = drawn[:local].sum()
    drawn.index_fill_(0, torch.where((labels >= start) & (labels < stop), labels - start, local), True)
    drawn = drawn[:local]
    position, order, count = _in_front(drawn)
    if aligned is None:
        aligned = 1 if device.type == "cpu" else ALIGNED
    return SampledClasses(drawn, position, order, HostCopy(torch.stack([count, count - by_chance])), aligned)


def union(samples: Sequence[SampledClasses]) -> SampledClasses:
    """The rows that any of several samples of one step holds; waits for their numbers and for no others."""
    first = samples[0]
    drawn = torch.stack([sample.drawn for sample in samples]).any(0)
    # Of the rows drawn by chance the sample with most of them has all; of the others no two need be the same.
    by_chance = max(count - by_label for count, by_label in (sample.numbers for sample in samples))
    by_label = sum(sample.numbers[1] for sample in samples)
    position, order, _ = _in_front(drawn)
    return SampledClasses(drawn, position, order, (by_chance + by_label, by_label), first.aligned, exact=False)


def _in_front(drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``position`` and ``order`` of a sample, and () how many rows are drawn: a permutation without a sort."""
    ahead = drawn.cumsum(0)  # how many are drawn up to each row and including it
    count = ahead[-1] if len(drawn) else ahead.new_zeros(())
    here = torch.arange(len(drawn), device=drawn.device)
    position = torch.where(drawn, ahead - 1, count + here - ahead)
    return position, torch.empty_like(position).scatter_(0, position, here), count
