"""What ``losses.head.centre_pass`` computes by tiles, from full logits by autograd: large, slow, and easy to check."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.head.collective import Group, max_ranks, sum_ranks
from losses.head.rows_torch import inverse_norm
from losses.head.sampling import SampledClasses
from losses.head.tile_torch import LOWEST, softmax_entropy
from losses.margins.margin import BatchView, Margin


def reduce_densely(
    x: Tensor,
    weight: Tensor,
    start: int,
    batch: BatchView,
    margin: Margin,
    sampled: SampledClasses | None,
    entropy: bool,
    group: Group = None,
) -> tuple[Tensor, Tensor | None]:
    """What ``reduce_others`` returns, the first part of it differentiable in embeddings and centres.

    Args:
        x: (B, d) unit embeddings.
        weight: (C_r, d) the shard, not normalised.
        start: its first class.
        sampled: the rows drawn, or None for all.
    """
    batch = replace(batch, norm=batch.norm.detach())  # as in a pass by tiles, where only cosines have a gradient
    logits = margin.others(x @ (weight * inverse_norm(weight)[:, None]).T, batch)
    if batch.bias is not None:
        logits = logits - batch.bias
    left_out = torch.arange(start, start + len(weight), device=x.device) == batch.labels[:, None]
    if sampled is not None:
        left_out = left_out | ~sampled.drawn
    counted = logits.masked_fill(left_out, 2 * LOWEST)
    if margin.reduction == "softplus":
        return sum_ranks(F.softplus(counted).sum(1), group), sum_ranks(counted.detach().sigmoid().sum(1), group)
    top = max_ranks(F.pad(counted, (0, 1), value=LOWEST).amax(1), group)
    above = counted - top[:, None]
    total = sum_ranks(above.exp().sum(1), group)
    of_softmax = None
    if entropy:
        moment = sum_ranks((above.detach().exp() * above.detach()).sum(1), group)
        of_softmax = softmax_entropy(total.detach(), moment)
    nothing = total == 0  # log 0 has no gradient
    return total.masked_fill(nothing, 1.0).log().masked_fill(nothing, -torch.inf) + top, of_softmax
