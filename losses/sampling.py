"""Which class centres take part in a step of Partial FC (An et al., CVPR 2022, "Killing Two Birds with One Stone").

The draw is a pure function of (seed, step, labels): every rank scores all classes with a counter-based hash and takes
the classes with the smallest scores, positives first. So 1 or 8 ranks draw the same negatives, a resumed run draws
those of an uninterrupted one, no rank asks another and nothing waits for the device.

Difference from arcface_torch's version 2: there each rank draws its own share with the device's random state, momentum
and weight decay reach rows that were not drawn, and a batch with more positives than the quota makes the host wait.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """The rows of one rank's shard that take part in a step.

    Attributes:
        index: (k,) int64, rows of the shard, all different; the sampled ones first and in ascending order.
        live: (k,) bool, false for the rows that only fill the buffer up to its fixed size; None if there are no
            such rows.
        slot: (rows of the shard,) int64, where each row stands in ``index`` (past its end: not in it).
    """

    index: Tensor
    live: Tensor | None
    slot: Tensor

    @property
    def rows(self) -> Tensor:
        """(m,) int64, the rows drawn; waits for the device."""
        return self.index if self.live is None else self.index[self.live]


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on int64; products wrap, shifts are made logical."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def class_scores(num_classes: int, seed: int, step: int, device: torch.device) -> Tensor:
    """(num_classes,) int64 in [0, 2^63): a hash of (seed, step, class)."""
    key = _mix(_mix(torch.tensor([seed], device=device)) + step)
    golden = -0x61C8864680B583EB  # 2^64 / golden ratio as int64: SplitMix64's increment
    return _mix(key + torch.arange(num_classes, device=device) * golden) & (2**63 - 1)


def draw(
    labels: Tensor, num_classes: int, start: int, stop: int, sample_rate: float, seed: int, step: int, wait: bool = True
) -> Sample:
    """Sample classes: all positives, then negatives at random until ``sample_rate * num_classes`` classes are taken.

    Where the positives alone exceed that quota they are all taken and nothing else is.

    Args:
        labels: (B,) int64 classes of the global batch; -1 is no class.
        start, stop: the shard's classes, [start, stop).
        wait: wait for the device to say how many classes of the shard are drawn, and return no more.
    """
    device = labels.device
    quota = max(1, int(sample_rate * num_classes))
    scores = torch.empty(num_classes + 1, dtype=torch.int64, device=device)
    scores[:num_classes] = class_scores(num_classes, seed, step, device)
    scores[torch.where(labels < 0, num_classes, labels)] = -1
    scores = scores[:num_classes]
    drawn = (scores <= scores.kthvalue(quota).values)[start:stop]

    rows = stop - start
    ahead = drawn.cumsum(0)
    count = ahead[-1:] if rows else ahead.new_zeros(1)
    here = torch.arange(rows, device=device)
    slot = torch.where(drawn, ahead - 1, count + here - ahead)
    index = torch.empty_like(slot).scatter_(0, slot, here)
    if wait:
        return Sample(index[: int(count)], None, slot)
    # Room for the mean of the count and six standard deviations (it is hypergeometric, narrower than Poisson), and for
    # a batch whose positives all lie here.
    mean = quota * rows / num_classes
    size = min(rows, math.ceil(mean + 6 * math.sqrt(mean)) + len(labels))
    return Sample(index[:size], torch.arange(size, device=device) < count, slot)
