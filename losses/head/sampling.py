"""Which class centres take part in a step of Partial FC (An et al., CVPR 2022, "Killing Two Birds with One Stone").

The draw is a pure function of (seed, step, labels): all positive classes take part, and every other class whose hash of
(seed, step, class) falls below a threshold. So 1 or 8 ranks draw the same negatives, a resumed run draws those of an
uninterrupted one, each rank looks at its own shard only, and nothing waits for the device.

Differences from arcface_torch's version 2: there each rank draws its own share with the device's random state, momentum
and weight decay reach rows that were not drawn, and a batch with more positives than the quota makes the host wait. The
number of negatives is exact there and binomial here (300 000 of a million: ± 460), which spares the selection of the
smallest hashes among all classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SampledClasses:
    """The rows of one rank's shard that take part in a step.

    Attributes:
        index: (k,) int64, rows of the shard, all different; the sampled ones first and in ascending order.
        active: (k,) bool, false for the rows that only fill the buffer up to its fixed size; None if there are no
            such rows.
        position: (rows of the shard,) int64, where each row stands in ``index`` (past its end: not in it).
    """

    index: Tensor
    active: Tensor | None
    position: Tensor

    @property
    def drawn(self) -> Tensor:
        """(m,) int64, the rows drawn; waits for the device."""
        return self.index if self.active is None else self.index[self.active]


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
    labels: Tensor, num_classes: int, start: int, stop: int, sample_rate: float, seed: int, step: int, wait: bool = True
) -> SampledClasses:
    """Sample classes: all positives, and each other class with the chance that makes up ``sample_rate * num_classes``.

    Where the positives alone exceed that quota they are all taken and nothing else is.

    Args:
        labels: (B,) int64 classes of the global batch; -1 is no class.
        start, stop: the shard's classes, [start, stop).
        wait: wait for the device to say how many classes of the shard are drawn, and return no more.
    """
    device, local, quota = labels.device, stop - start, sample_rate * num_classes
    ordered = labels.sort().values
    distinct = (ordered.diff(prepend=ordered.new_full((1,), -1)) != 0).sum().double()
    chance = ((quota - distinct) / (num_classes - distinct)).clamp(0, 1 - 2**-53)  # -inf where all are positives
    drawn = torch.empty(local + 1, dtype=torch.bool, device=device)  # the last is for labels of other shards
    drawn[:local] = class_scores(start, stop, seed, step, device) < (chance * 2**63).long()
    drawn.index_fill_(0, torch.where((labels >= start) & (labels < stop), labels - start, local), True)
    drawn = drawn[:local]

    # ``position`` permutes the shard's rows without a sort: first the drawn ones in their order, then the others in
    # theirs; ``index`` is its inverse. ``count`` stays on the device, so that ``index`` is cut at a size that is large
    # enough, and its rows from ``count`` on are the inactive ones.
    ahead = drawn.cumsum(0)  # how many are drawn up to each row and including it
    count = ahead[-1:] if local else ahead.new_zeros(1)
    here = torch.arange(local, device=device)
    position = torch.where(drawn, ahead - 1, count + here - ahead)
    index = torch.empty_like(position).scatter_(0, position, here)
    if wait:
        return SampledClasses(index[: int(count)], None, position)
    # Room for the mean of the count and six standard deviations of a Poisson distribution, which is wider than the
    # binomial one, and for a batch whose positives all lie here. Negatives past that would be left out of the step.
    mean = quota * local / num_classes
    size = min(local, math.ceil(mean + 6 * math.sqrt(mean)) + len(labels))
    return SampledClasses(index[:size], torch.arange(size, device=device) < count, position)
