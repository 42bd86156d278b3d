"""The classifier of the training: class centres sharded over all ranks, a margin softmax over (a sample of) them.

Partial FC (An et al., CVPR 2022) on a streamed softmax. Rank r holds the rows [start, stop) of the C × d centres. The
embeddings of all ranks are gathered, and every rank computes the loss of the global batch from its own centres and two
sums over the ranks: the cosines to the own centres, and the exponentials.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

import losses.head.tile_torch
from losses.head.collective import (
    Group,
    RowGather,
    rank,
    reshard,
    shard_range,
    sum_ranks,
    world_size,
)
from losses.head.queue import EmbeddingQueue
from losses.head.sampling import Sample, draw
from losses.head.stream import Stream, Walk
from losses.head.tile_torch import inverse_norm
from losses.margins.margin import Margin, Rows
from pipelines.common.errors import UserError

_INIT_BLOCK = 4096
_INIT_STD = 0.01


@dataclass
class HeadOutput:
    """What the head says of the global batch, the same on every rank. BroadFace's past embeddings follow as more rows.

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
        kernels: what computes a streamed tile: ``torch``, or ``triton`` for fused kernels on a GPU.
        tile: centres in a tile; None chooses by the device's cache or memory.
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
        kernels: str = "torch",
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
            raise UserError(f"a classifier needs at least one class, not {num_classes}")
        if not 0 < sample_rate <= 1:
            raise UserError(f"sample_rate must be in (0, 1], not {sample_rate}")
        if mode not in ("streamed", "dense"):
            raise UserError(f"mode is 'streamed' or 'dense', not {mode!r}")
        if kernels not in ("torch", "triton"):
            raise UserError(f"kernels are 'torch' or 'triton', not {kernels!r}")
        if kernels == "triton" and mode != "streamed":
            raise UserError("Triton's kernels work on tiles; take kernels 'torch' in dense mode")
        if tile is not None and tile < 1:
            raise UserError(f"tile must be positive, not {tile}")
        if entropy and not margin.competitive:
            raise UserError(f"{type(margin).__name__} has no softmax over the classes, so no entropy")
        self.margin = margin.to(device)
        self.queue = EmbeddingQueue(margin.queue_size, embedding_size, device) if margin.queue_size else None
        self.num_classes = num_classes
        self.sample_rate, self.mode, self.tile = sample_rate, mode, tile
        self.entropy, self.matmul_dtype, self.uneven_batches = entropy, matmul_dtype, uneven_batches
        self.seed, self.step, self.group = seed, 0, group
        self.kernels, self.arithmetic = kernels, _triton_kernels() if kernels == "triton" else losses.head.tile_torch
        self.consume = None  # set by CentreOptimizer: takes the pullback of a batch instead of weight.grad
        self.weight = nn.Parameter(self._initial(*self._range, embedding_size, torch.device(device)))

    @property
    def _range(self) -> tuple[int, int]:
        return shard_range(self.num_classes, rank(self.group), world_size(self.group))

    @property
    def start(self) -> int:
        """First class of this rank."""
        return self._range[0]

    @property
    def stop(self) -> int:
        """One past the last class of this rank."""
        return self._range[1]

    def _initial(self, start: int, stop: int, embedding_size: int, device: torch.device) -> Tensor:
        """Normal numbers in blocks with seeds of their own, so that they do not depend on the number of ranks."""
        weight = torch.empty(stop - start, embedding_size, device=device)
        if device.type == "meta":
            return weight
        generator = torch.Generator(device)
        for block in range(start // _INIT_BLOCK, -(-stop // _INIT_BLOCK)):
            first = block * _INIT_BLOCK
            generator.manual_seed((self.seed * 1_000_003 + block) % 2**63)
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
        norm, labels = gather.replicated(norm), gather(labels)
        uniform = None if uniform is None else gather(uniform)
        weights = torch.ones_like(norm) if weights is None else gather.replicated(weights)
        if self.queue is not None and self.training:
            x, labels = self._with_past(x, labels)
            norm, weights = (F.pad(value, (0, len(self.queue)), value=1.0) for value in (norm, weights))
        rows = Rows(labels, labels >= 0, x.new_zeros(len(x)), norm, embeddings.shape[1], uniform)

        compute = self._streamed if self.mode == "streamed" else self._dense
        cos_y, lse, mean_logit = (compute if self.margin.competitive else self._alone)(x, rows)
        self.step += self.training
        target = self.margin.target(cos_y, rows)
        row_losses = torch.where(rows.valid, self.margin.loss(target, lse, rows), 0.0)
        entropy = _entropy(target.detach(), lse.detach(), mean_logit) if self.entropy else None
        return HeadOutput(rows.mean(weights * row_losses), row_losses, rows, entropy, slice(gather.start, gather.stop))

    def _with_past(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's (B, d) unit embeddings and labels, followed by the queue's.

        The loss is a mean over all of them for the centres. To the encoder it is the batch's mean, so the gradient of
        ``x`` grows by the ratio of the numbers of rows.
        """
        past, past_labels = self.queue.exchange(x.detach(), labels, self._own_centres)
        if x.requires_grad:
            count, past_count = (labels >= 0).sum(), (past_labels >= 0).sum()
            x.register_hook(lambda gradient: gradient * ((count + past_count) / count.clamp(min=1)))
        return torch.cat([x, past]), torch.cat([labels, past_labels])

    def _own_centres(self, labels: Tensor) -> Tensor:
        """(n, d) centres of the classes, each from the rank that holds it, without gradient; 0 for the label -1."""
        if not len(self.weight):
            return sum_ranks(self.weight.new_zeros(len(labels), self.weight.shape[1]), self.group)
        here = (labels >= self.start) & (labels < self.stop)
        own = self.weight.detach()[(labels - self.start).clamp(0, len(self.weight) - 1)]
        return sum_ranks(own * here[:, None], self.group)

    def _own_cosine(self, x: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """(B,) cosines to the own centres, each from the rank that holds the centre; 0 where the label is -1."""
        here = (labels >= self.start) & (labels < self.stop)
        if not len(weight):
            return sum_ranks(x.sum(1) * 0, self.group)
        own = weight[(labels - self.start).clamp(0, len(weight) - 1)]
        return sum_ranks((x * own).sum(1) * inverse_norm(own) * here, self.group)

    @torch.no_grad()
    def _prepare(self, rows: Rows, cos_y: Tensor) -> None:
        """Complete the rows with what the margin reads of them."""
        rows.cos_y = cos_y.detach()
        rows.state = self.margin.update(rows)

    def _sample(self, labels: Tensor) -> Sample | None:
        if self.sample_rate == 1:
            return None
        shard = self.num_classes, self.start, self.stop
        return draw(labels, *shard, self.sample_rate, self.seed, self.step, wait=labels.device.type == "cpu")

    def _streamed(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.no_grad():
            cos_y = self._own_cosine(x, rows.labels, self.weight)
        self._prepare(rows, cos_y)
        sample = self._sample(rows.labels)
        slot = rows.labels - self.start
        if sample is not None and len(self.weight):
            here = (slot >= 0) & (slot < len(self.weight))
            slot = torch.where(here, sample.slot[slot.clamp(0, len(self.weight) - 1)], -1)
        # On a CPU products cost more than memory, and these exponentials take no more of it than the centres.
        slow_products = x.device.type == "cpu" and self.kernels == "torch"
        keeps = slow_products and self.margin.linear and self.training and len(x) <= x.shape[1]
        walk = Walk(self.weight.detach(), slot, sample, self._tile(len(x)), self.matmul_dtype, self.arithmetic, keeps)
        return Stream.apply(x, self.weight, rows.cos_y, walk, self.margin, rows, self.entropy, self.group, self.consume)

    def _tile(self, batch: int) -> int:
        """Centres in a tile.

        On a CPU its numbers should stay in the cache that they are made in. On a GPU a tile should be work for longer
        than its launches take; with all that it needs it takes some 64th of the memory. Multiples of 128 keep the rows
        of products aligned for the tensor cores, so what is left of the shard is a tile of its own.
        """
        if self.tile is not None:
            return self.tile
        if self.weight.device.type == "cpu":
            return max(256, 2**20 // max(1, batch))
        memory = torch.cuda.get_device_properties(self.weight.device).total_memory
        most = memory // 64 // (8 * (batch + 2 * self.weight.shape[1]))
        return max(128, min(most, len(self.weight)) // 128 * 128)

    def _alone(self, x: Tensor, rows: Rows) -> tuple[Tensor, None, None]:
        """For losses in which other classes have no part; the centres get no gradient."""
        cos_y = self._own_cosine(x, rows.labels, self.weight.detach())
        self._prepare(rows, cos_y)
        return cos_y, None, None

    def _dense(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        cos_y = self._own_cosine(x, rows.labels, self.weight)
        self._prepare(rows, cos_y)
        sample = self._sample(rows.labels)
        logits = self.margin.others(x @ (self.weight * inverse_norm(self.weight)[:, None]).T, rows)
        here = torch.arange(self.start, self.stop, device=x.device)
        left_out = here == rows.labels[:, None]
        if sample is not None:
            left_out = left_out | torch.ones_like(left_out[0]).index_fill_(0, sample.rows, False)
        shift = self.margin.shift(rows)
        exp = (logits - shift).exp().masked_fill(left_out, 0.0)
        total = sum_ranks(exp.sum(1), self.group)
        mean_logit = sum_ranks((exp * logits).sum(1), self.group).detach() / total.detach() if self.entropy else None
        nothing = total == 0  # log 0 has no gradient
        return cos_y, total.masked_fill(nothing, 1.0).log().masked_fill(nothing, -torch.inf) + shift, mean_logit

    def extend_classes(self, count: int) -> None:
        """Add ``count`` classes behind the others, with random centres; all ranks call, after loading a checkpoint.

        The shards change with it, so create the optimiser of the centres afterwards.
        """
        if count < 1:
            raise UserError(f"the number of classes to add must be positive, not {count}")
        old, self.num_classes = self.num_classes, self.num_classes + count
        kept = reshard(self.weight.detach(), old, self.num_classes, self.group)
        fresh = self._initial(max(self.start, old), max(self.stop, old), kept.shape[1], kept.device)
        self.weight = nn.Parameter(torch.cat([kept, fresh]))

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
                raise UserError(f"the file has centres of {len(weight)} classes, the head has {self.num_classes}")
            weight = weight[self.start : self.stop]
        local = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        if weight is not None:
            local[prefix + "weight"] = weight
        step = local.pop(prefix + "step", None)
        if step is not None:
            self.step = int(step)
        super()._load_from_state_dict(local, prefix, *args)


def _triton_kernels() -> ModuleType:
    try:
        import losses.head.tile_triton
    except ImportError as error:
        raise UserError(f"kernels 'triton' need the package triton ({error}); take kernels 'torch'") from None
    return losses.head.tile_triton


def _entropy(target: Tensor, lse: Tensor, mean_logit: Tensor) -> Tensor:
    """(B,) entropy of the softmax over the target and the others: H = log Z - Σ p·logit."""
    log_z = torch.logaddexp(lse, target)
    others = torch.where(lse.isneginf(), 0.0, (lse - log_z).exp() * mean_logit)
    return log_z - others - (target - log_z).exp() * target
