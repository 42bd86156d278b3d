"""The classifier of the training: class centres sharded over all ranks, a margin softmax over (a sample of) them.

Partial FC (An et al., CVPR 2022) on a streamed softmax. Rank r holds the rows [start, stop) of the C × d centres. The
embeddings of all ranks are gathered, and every rank computes the loss of the global batch from its own centres and two
sums over the ranks: the cosines to the own centres, and the exponentials.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from losses.collective import Group, RowGather, rank, sum_ranks, world_size
from losses.margin import Margin, Rows
from losses.sampling import Sample, draw
from losses.stream import Stream, Walk, normalised

_INIT_BLOCK = 4096
_INIT_STD = 0.01


@dataclass
class HeadOutput:
    """What the head says of the global batch, the same on every rank.

    Attributes:
        loss: float32 scalar: the mean of ``weights * row_losses`` over the rows with a class.
        row_losses: (B,) float32, differentiable, 0 where the label is -1.
        rows: labels, validity, cosines to the own centres, norms.
        entropy: (B,) float32 entropies of the softmax with the margin in it, without gradient, or None.
        own: the slice of the B rows that came from this rank.
    """

    loss: Tensor
    row_losses: Tensor
    rows: Rows
    entropy: Tensor | None
    own: slice

    @property
    def cosine(self) -> Tensor:
        """(B,) cosines to the own centres."""
        return self.rows.cos_y


class PartialFC(nn.Module):
    """Embeddings (b, d) and labels (b,) of each rank → margin-softmax loss of the global batch.

    The gradient that reaches ``embeddings`` is that of the loss times the number of ranks, because
    DistributedDataParallel averages the backbone's gradients where the loss of the global batch calls for their sum.

    Args:
        margin: the loss (see ``create_margin``).
        num_classes: C, over all ranks.
        sample_rate: share of the classes that take part in a step (see ``sampling.draw``).
        mode: ``streamed``, or ``dense`` for the same from full logits by autograd: slow, large, and simple enough to
            compare with.
        tile: centres in a tile; None chooses by the device.
        entropy: whether ``HeadOutput.entropy`` is wanted.
        matmul_dtype: type of the products' factors; the sums, the cosines to the own centres and the centres
            themselves stay float32.
        uneven_batches: set it where ranks may bring different numbers of rows.
        seed: of the initial centres and of the samples.
        group: the ranks that share the centres; None for all.

    Attributes:
        weight: (C_r, d) this rank's centres; rows are split as DTensor splits them. In the state dict they are a
            DTensor of all C rows, so that ``torch.distributed.checkpoint`` loads them on any number of ranks.
        step: number of steps drawn so far; (seed, step) decides a sample. Part of the state dict.
    """

    def __init__(
        self,
        margin: Margin,
        embedding_size: int,
        num_classes: int,
        *,
        sample_rate: float = 1.0,
        mode: str = "streamed",
        tile: int | None = None,
        entropy: bool = False,
        matmul_dtype: torch.dtype = torch.float32,
        uneven_batches: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        group: Group = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a classifier needs at least one class, not {num_classes}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be in (0, 1], not {sample_rate}")
        if mode not in ("streamed", "dense"):
            raise ValueError(f"mode is 'streamed' or 'dense', not {mode!r}")
        if tile is not None and tile < 1:
            raise ValueError(f"tile must be positive, not {tile}")
        self.margin = margin.to(device)
        self.num_classes = num_classes
        self.sample_rate, self.mode, self.tile = sample_rate, mode, tile
        self.entropy, self.matmul_dtype, self.uneven_batches = entropy, matmul_dtype, uneven_batches
        self.seed, self.step, self.group = seed, 0, group
        self.consume = None  # set by CentreOptimizer: takes the pullback of a batch instead of weight.grad
        self.weight = nn.Parameter(self._initial(*self._bounds(num_classes), embedding_size, torch.device(device)))

    def _bounds(self, num_classes: int) -> tuple[int, int]:
        """This rank's [start, stop) by DTensor's rule: an even share rounded up; the last ranks get less."""
        rows = -(-num_classes // world_size(self.group))
        start = min(rank(self.group) * rows, num_classes)
        return start, min(start + rows, num_classes)

    @property
    def start(self) -> int:
        """First class of this rank."""
        return self._bounds(self.num_classes)[0]

    @property
    def stop(self) -> int:
        """One past the last class of this rank."""
        return self._bounds(self.num_classes)[1]

    def _initial(self, start: int, stop: int, embedding_size: int, device: torch.device) -> Tensor:
        """Normal numbers in blocks with seeds of their own, so that they do not depend on the number of ranks."""
        weight = torch.empty(stop - start, embedding_size, device=device)
        if device.type == "meta":
            return weight
        generator = torch.Generator(device)
        for block in range(start // _INIT_BLOCK, -(-stop // _INIT_BLOCK)):
            first = block * _INIT_BLOCK
            generator.manual_seed(self.seed * 1_000_003 + block)
            values = torch.randn(_INIT_BLOCK, embedding_size, generator=generator, device=device) * _INIT_STD
            inside = slice(max(start, first), min(stop, first + _INIT_BLOCK))
            weight[inside.start - start : inside.stop - start] = values[inside.start - first : inside.stop - first]
        return weight

    def forward(
        self, embeddings: Tensor, labels: Tensor, weights: Tensor | None = None, uniform: Tensor | None = None
    ) -> HeadOutput:
        """One batch.

        Args:
            embeddings: (b, d), any float type.
            labels: (b,) int64 in [0, C), or -1 for a row without a class.
            weights: (b,) factors of the rows' losses.
            uniform: (b,) random numbers in [0, 1) for margins that draw.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(embeddings.float(), labels, weights, uniform)

    def _loss(self, embeddings: Tensor, labels: Tensor, weights: Tensor | None, uniform: Tensor | None) -> HeadOutput:
        gather = RowGather(len(embeddings), embeddings.device, self.group, self.uneven_batches)
        norm = torch.linalg.vector_norm(embeddings, dim=1)
        x = gather.partial(embeddings / norm.clamp(min=1e-12)[:, None])
        labels = gather(labels)
        valid = labels >= 0
        rows = Rows(
            labels, valid, x.new_zeros(len(x)), gather.replicated(norm), uniform if uniform is None else gather(uniform)
        )

        sample = None
        if self.sample_rate < 1:
            sample = draw(labels, self.num_classes, self.start, self.stop, self.sample_rate, self.seed, self.step)
        self.step += self.training
        compute = self._streamed if self.mode == "streamed" else self._dense
        cos_y, lse, mean_logit = compute(x, rows, sample)
        target = self.margin.target(cos_y, rows)
        row_losses = torch.where(valid, self.margin.loss(target, lse, rows), 0.0)
        loss = rows.mean(row_losses if weights is None else gather.replicated(weights) * row_losses)
        entropy = _entropy(target.detach(), lse.detach(), mean_logit) if self.entropy else None
        return HeadOutput(loss, row_losses, rows, entropy, slice(gather.start, gather.stop))

    def _own_cosine(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B,) cosines to the own centres, each from the rank that holds the centre; 0 where the label is -1."""
        here = (labels >= self.start) & (labels < self.stop)
        if not len(self.weight):
            return sum_ranks(x.sum(1) * 0, self.group)
        unit, _ = normalised(self.weight[(labels - self.start).clamp(0, len(self.weight) - 1)])
        return sum_ranks((x * unit).sum(1) * here, self.group)

    def _streamed(self, x: Tensor, rows: Rows, sample: Sample | None) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.no_grad():
            rows.cos_y = self._own_cosine(x, rows.labels)
            rows.state = self.margin.update(rows)
        slot = rows.labels - self.start
        if sample is not None and len(self.weight):
            here = (slot >= 0) & (slot < len(self.weight))
            slot = torch.where(here, sample.slot[slot.clamp(0, len(self.weight) - 1)], -1)
        walk = Walk(self.weight.detach(), slot, sample, self._tile(len(x)), self.matmul_dtype)
        return Stream.apply(x, self.weight, rows.cos_y, walk, self.margin, rows, self.entropy, self.group, self.consume)

    def _tile(self, batch: int) -> int:
        """A tile's logits should stay in the cache they are made in: some 2 MiB of it on a CPU, 32 MiB on a GPU."""
        if self.tile is not None:
            return self.tile
        numbers = 2**19 if self.weight.device.type == "cpu" else 2**23
        return max(256, numbers // max(1, batch))

    def _dense(self, x: Tensor, rows: Rows, sample: Sample | None) -> tuple[Tensor, Tensor, Tensor | None]:
        cos_y = self._own_cosine(x, rows.labels)
        rows.cos_y = cos_y.detach()
        with torch.no_grad():
            rows.state = self.margin.update(rows)
        unit, _ = normalised(self.weight)
        logits = self.margin.others(x @ unit.T, rows)
        here = torch.arange(self.start, self.stop, device=x.device)
        left_out = here == rows.labels[:, None]
        if sample is not None:
            left_out = left_out | (
                torch.ones_like(here, dtype=torch.bool).index_fill_(0, sample.index[sample.live], False)
            )
        exp = (logits - self.margin.shift).exp().masked_fill(left_out, 0.0)
        total = sum_ranks(exp.sum(1), self.group)
        mean_logit = sum_ranks((exp * logits).sum(1), self.group).detach() / total.detach() if self.entropy else None
        return cos_y, total.log() + self.margin.shift, mean_logit

    # -- state ---------------------------------------------------------------------------------------------------------

    def shard(self, local: Tensor) -> Tensor:
        """A tensor with a row for each centre of this rank as a DTensor of all C rows; itself without ranks."""
        if world_size(self.group) == 1:
            return local
        mesh = DeviceMesh.from_group(self.group or dist.group.WORLD, local.device.type)
        shape = (self.num_classes, *local.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.shard(self.weight if keep_vars else self.weight.detach())
        destination[prefix + "step"] = torch.tensor(self.step)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """The centres may be a DTensor sharded like these, or a plain tensor of all C rows."""
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, DTensor):
            weight = weight.to_local()
        elif weight is not None:
            if len(weight) != self.num_classes:
                raise ValueError(f"the file has centres of {len(weight)} classes, the head has {self.num_classes}")
            weight = weight[self.start : self.stop]
        local = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        if weight is not None:
            local[prefix + "weight"] = weight
        step = local.pop(prefix + "step", None)
        if step is not None:
            self.step = int(step)
        super()._load_from_state_dict(local, prefix, *args)


def _entropy(target: Tensor, lse: Tensor, mean_logit: Tensor) -> Tensor:
    """(B,) entropy of the softmax over the target and the others: H = log Z - Σ p·logit."""
    log_z = torch.logaddexp(lse, target)
    others = torch.where(lse.isneginf(), 0.0, (lse - log_z).exp() * mean_logit)
    return log_z - others - (target - log_z).exp() * target
