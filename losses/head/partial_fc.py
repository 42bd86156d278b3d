"""The sharded classifier: class centres split over all ranks, a margin softmax over them or a sample of them.

Partial FC (An et al., CVPR 2022) on a streamed softmax. Rank r holds the rows [start, stop) of the C × d centres. The
embeddings of all ranks are gathered, and every rank computes the loss of the global batch from its own centres and two
sums over the ranks: the cosines to the own centres, and the exponentials. BroadFace's queue takes a third, of centres;
the backward pass, one reduce-scatter of the embeddings' gradient.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import losses.head.tile_torch
from losses.head.centre_pass import CentrePass, OnCentreGradient, StreamedReduction
from losses.head.collective import Group, RowGather
from losses.head.dense import reduce_densely
from losses.head.queue import EmbeddingQueue
from losses.head.rows_torch import inverse_norm
from losses.head.sampling import SampledClasses, draw
from losses.head.sharded_centres import ShardedCentres
from losses.head.tile_size import tile_size
from losses.margins.margin import BatchView, Margin
from pipelines.common.errors import UserError


@dataclass
class HeadOutput:
    """Result of one forward pass, the same on every rank: B rows of the global batch; BroadFace appends its queue's.

    Attributes:
        loss: float32 scalar: the mean of ``weights * row_losses`` over the rows with a class.
        row_losses: (B,) float32, differentiable, 0 where the label is -1.
        batch: what the margin saw: labels, validity, cosines to the own centres, norms.
        entropy: (B,) float32 entropies of the softmax with the margin in it, without gradient, or None.
        probability: (B,) float32 of the own class by that softmax, without gradient; None where ``entropy`` is.
        local: which of the B rows came from this rank.
    """

    loss: Tensor
    row_losses: Tensor
    batch: BatchView
    entropy: Tensor | None
    probability: Tensor | None
    local: slice

    @property
    def cosine(self) -> Tensor:
        """(B,) cosines to the own centres."""
        return self.batch.cos_y


@dataclass
class Rows:
    """What a batch's labels say before there are embeddings.

    Attributes:
        local: (b,) labels of this rank.
        gather: stacks the ranks' rows.
        labels: (B,) of all ranks.
        sampled: the classes drawn, or None for all.
    """

    local: Tensor
    gather: RowGather
    labels: Tensor
    sampled: SampledClasses | None


class PartialFC(ShardedCentres):
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
        entropy: whether to compute ``HeadOutput.entropy`` and ``probability``.
        matmul_dtype: type of the products' operands; the sums, the cosines to the own centres and the centres
            themselves stay float32.
        uneven_batches: set it where ranks may bring different numbers of rows.
        seed: of the initial centres and of the samples.
        group: the ranks that share the centres; None for all.

    Attributes:
        weight: see ``ShardedCentres``.
        sample_rate: may be set anew before a step, ahead of ``prepare``; to 1 and from 1 where the update is fused. As
            an attribute of the margin, its ``share``.
        step: number of updates so far, counted by ``CentreOptimizer.step``; (seed, step) decides which classes are
            drawn. Part of the state dict.
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
        if entropy and not (margin.competitive and margin.reduction == "logsumexp"):
            raise UserError(f"{type(margin).__name__} has no softmax over the classes, so no entropy")
        super().__init__(embedding_size, num_classes, seed=seed, device=device, group=group)
        self.margin = margin.to(device)
        self.queue = EmbeddingQueue(margin.queue_size, embedding_size, device) if margin.queue_size else None
        self.sample_rate, self.mode, self.tile = sample_rate, mode, tile
        self.entropy, self.matmul_dtype, self.uneven_batches = entropy, matmul_dtype, uneven_batches
        self.begin_margin()
        self.step = 0
        self.kernels = kernels
        self.arithmetic: ModuleType = losses.head.tile_torch
        if kernels == "triton":
            self.arithmetic = _triton_kernels()
            self.arithmetic.check(margin, matmul_dtype)
        self._on_centre_gradient: OnCentreGradient | None = None
        self._prepared: Rows | None = None

    def begin_margin(self) -> None:
        """Set what the margin begins with for this number of classes: anew where that changes before training."""
        self.margin.begin(max(1, round(self.num_classes * self.sample_rate)))

    def prepare(self, labels: Tensor) -> None:
        """Draw the classes for the next forward pass, if that comes with these labels: the same tensor (b,).

        Called before the backbone, by all ranks. The forward pass has to know how many classes are drawn: on a GPU it
        then waits for a number from before the backbone, and the device has all of that still to do.
        """
        self._prepared = self._rows(labels) if self._draws else None

    @property
    def _draws(self) -> bool:
        return self.sample_rate < 1 and self.margin.competitive

    def _rows(self, labels: Tensor) -> Rows:
        gather = RowGather(len(labels), labels.device, self.group, self.uneven_batches)
        of_all, sampled = gather(labels), None
        if self._draws:
            past = [self.queue.labels] if self.queue is not None and self.training else []
            shard = self.num_classes, self.start, self.stop
            sampled = draw(torch.cat([of_all, *past]), *shard, self.sample_rate, self.seed, self.step)
        return Rows(labels, gather, of_all, sampled)

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
        rows, self._prepared = self._prepared, None
        if rows is None or rows.local is not labels:
            rows = self._rows(labels)
        gather, labels = rows.gather, rows.labels
        norm = torch.linalg.vector_norm(embeddings, dim=1)
        # Each rank's centres give a part of d loss/dx; norms and weights meet no centre, so theirs is whole on each.
        x = gather.partial(embeddings * inverse_norm(embeddings)[:, None])
        norm = gather.replicated(norm)
        uniform = None if uniform is None else gather(uniform)
        weights = torch.ones_like(norm) if weights is None else gather.replicated(weights)
        if self.queue is not None and self.training:
            x, labels = self._with_past(self.queue, x, labels)
            norm, weights = (F.pad(value, (0, len(self.queue)), value=1.0) for value in (norm, weights))
        batch, cos_y = self._view(x, labels, norm, uniform)

        reduced = beside = None
        if self.margin.competitive:
            if self.mode == "streamed":
                cos_y, reduced, beside = self._streamed(x, batch, rows.sampled)
            else:
                of_batch = batch, self.margin, rows.sampled, self.entropy
                reduced, beside = reduce_densely(x, self.weight, self.start, *of_batch, self.group)
            if self.margin.reduction == "softplus" and beside is not None:
                bias = self.margin.bias(batch)
                reduced = reduced - beside * (bias - bias.detach())  # the number it is, with the bias's derivative
        target = self.margin.own(cos_y, batch)
        row_losses = torch.where(batch.valid, self.margin.loss(target, reduced, batch), 0.0)
        entropy = probability = None
        if self.entropy and reduced is not None and beside is not None:
            gap = (target - reduced).detach()
            entropy, probability = _entropy(gap, beside), gap.sigmoid()
        loss, local = batch.mean(weights * row_losses), slice(gather.start, gather.stop)
        return HeadOutput(loss, row_losses, batch, entropy, probability, local)

    def _view(self, x: Tensor, labels: Tensor, norm: Tensor, uniform: Tensor | None) -> tuple[BatchView, Tensor]:
        """The batch as the margin sees it, and (B,) cosines to the own centres.

        The cosines are differentiable in dense mode. In a streamed pass they get their gradient together with the other
        classes (see ``StreamedReduction``), and where other classes have no part, the centres get none.
        """
        weight = self.weight if self.mode == "dense" and self.margin.competitive else self.weight.detach()
        streamed = self.mode == "streamed" and self.margin.competitive
        cos_y = self.own_cosine(x.detach() if streamed else x, labels, weight)
        batch = BatchView(labels, labels >= 0, cos_y.detach(), norm, x.shape[1], uniform)
        with torch.no_grad():
            batch.state = self.margin.update(batch)
            if self.margin.reduction == "softplus":
                batch.bias = self.margin.bias(batch).clone()
        return batch, cos_y

    def _with_past(self, queue: EmbeddingQueue, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's (B, d) unit embeddings and labels, followed by the queue's.

        The loss is a mean over all of them for the centres. To the encoder it is the batch's mean, so the gradient of
        ``x`` grows by the ratio of the numbers of rows.
        """
        past, past_labels = queue.exchange(x.detach(), labels, self.own_centres)
        if x.requires_grad:
            count, past_count = (labels >= 0).sum(), (past_labels >= 0).sum()
            x.register_hook(lambda gradient: gradient * ((count + past_count) / count.clamp(min=1)))
        return torch.cat([x, past]), torch.cat([labels, past_labels])

    def _streamed(
        self, x: Tensor, batch: BatchView, sampled: SampledClasses | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B,) cosines to the own centres, now with a gradient, and what ``reduce_others`` returns."""
        centre_pass = CentrePass(
            self.weight.detach(),
            batch.labels - self.start,
            sampled,
            self.tile_size(len(x)),
            self.matmul_dtype,
            self.arithmetic,
        )
        if self.training:
            centre_pass.keep = self._kept(len(x), centre_pass)
        return StreamedReduction.apply(
            x,
            self.weight,
            batch.cos_y,
            centre_pass,
            self.margin,
            batch,
            self.entropy,
            self.group,
            self._on_centre_gradient,
        )

    def _kept(self, batch: int, centre_pass: CentrePass) -> int:
        """Of how many centres the passes keep what they computed.

        On a CPU, where products cost more than memory, that takes no more of it than the centres in the pass. On a GPU
        it is one tile, which where there are few classes is nearly all.
        """
        if self.weight.device.type == "cpu":
            return len(centre_pass) * self.weight.shape[1] // max(batch, self.weight.shape[1])
        return centre_pass.size

    def tile_size(self, batch: int) -> int:
        """Centres in a tile: ``tile``, or what ``tile_size.tile_size`` chooses."""
        if self.tile is not None:
            return self.tile
        on_cpu = self.weight.device.type == "cpu"
        memory = None if on_cpu else torch.cuda.get_device_properties(self.weight.device).total_memory
        return tile_size(batch, len(self.weight), self.weight.shape[1], memory)

    def attach(self, on_centre_gradient: OnCentreGradient | None) -> None:
        """What a streamed backward pass calls for the gradient of the centres; by None it goes to ``weight.grad``.

        The function gets the batch's ``Backward`` and ``d_x`` (B, d) or None, and has to add the gradient of the unit
        embeddings to the latter. ``weight.grad`` stays None then. One at a time: ``CentreOptimizer`` calls this.
        """
        self._on_centre_gradient = on_centre_gradient

    # -- state ---------------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "step"] = torch.tensor(self.step)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        others = dict(state_dict)
        step = others.pop(prefix + "step", None)
        if step is not None:
            self.step = int(step)
        super()._load_from_state_dict(others, prefix, *args)


def _triton_kernels() -> ModuleType:
    try:
        import losses.head.tile_triton
    except ImportError as error:
        raise UserError(f"kernels 'triton' need the package triton ({error}); take kernels 'torch'") from None
    return losses.head.tile_triton


def _entropy(gap: Tensor, others: Tensor) -> Tensor:
    """(B,) entropy of the softmax over target and others: that of the choice between them, and p·H of the others.

    No difference of large logits is in it but ``gap``, the target less the others' log-sum-exp: what it says is as
    exact at a large scale.
    """
    entropy = gap.sigmoid() * F.softplus(-gap) + (-gap).sigmoid() * (F.softplus(gap) + others)
    return entropy.masked_fill(gap.isposinf(), 0.0)  # there are no others
