"""What a margin loss is here: a few small functions of one cosine a row, and the state they need.

With c_ij the cosine of embedding i and class centre j, every loss of the family is

    target_i = T(c_iy, batch)          other_ij = N(c_ij, batch)        reduced_i = log Σ_{j≠y} exp(other_ij)
    loss_i   = L(target_i, reduced_i, batch)                                   or Σ_{j≠y} softplus(other_ij - bias)

The head evaluates N tile by tile and never needs more of a margin than this. In every published margin N is s·c_ij
except for hard negatives, the cosines above a limit of their row, which a margin may replace by a polynomial
(``HardNegativeCurve``) or drop. ``Margin`` says what may be overridden, N itself included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.margins.options import Cosine, Scale
from pipelines.common.arguments import checked

# exp() stays inside float32 from e^-87 to e^88; logits of up to 70 leave e^18 for the sum over classes.
_UNSHIFTED = 70.0


@dataclass
class HardNegativeCurve:
    """What hard negatives become: a cosine c above its row's limit is replaced by ((a·c + b)·c + e)·c + f.

    Attributes:
        limit: (B,) float32.
        coefficients: (4,) float32, a, b, e and f.
    """

    limit: Tensor
    coefficients: Tensor

    @classmethod
    def fixed(cls, limit: Tensor, coefficients: Sequence[float]) -> "HardNegativeCurve":
        """With numbers as coefficients, which are made on the device, so that nothing waits for it."""
        return cls(limit, torch.stack([limit.new_full((), number) for number in coefficients]))


def cubic(coefficients: Iterable[float | Tensor], cos: Tensor) -> Tensor:
    """((a·c + b)·c + e)·c + f of each cosine c."""
    a, b, e, f = coefficients
    return ((a * cos + b) * cos + e) * cos + f


@dataclass
class BatchView:
    """The global batch as a margin sees it: B rows, the same on every rank.

    Attributes:
        labels: (B,) int64; -1 is a row without a class, which adds neither loss nor gradient.
        valid: (B,) bool, labels >= 0.
        cos_y: (B,) float32 cosines to the own centres, without gradient (0 where there is none).
        norm: (B,) float32 embedding norms, with gradient.
        embedding_size: d, the length of the embeddings.
        uniform: (B,) float32 in [0, 1), the schedule's random number of each row, or None.
        state: what the margin's ``update`` returned for this batch.
        bias: () float32 without gradient, what the margin's ``bias`` was for this batch, or None.
    """

    labels: Tensor
    valid: Tensor
    cos_y: Tensor
    norm: Tensor
    embedding_size: int
    uniform: Tensor | None = None
    state: Any = None
    bias: Tensor | None = None

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a (B,) value over the valid rows; 0 if there are none."""
        return (value * self.valid).sum() / self.valid.sum().clamp(min=1)


class Margin(nn.Module):
    """Base of all margins: scaled cosines, softmax cross-entropy, no margin.

    A margin overrides any of ``target``, ``loss``, ``update``, ``hard_negatives`` and ``others``:

        class LeakyCosFace(Margin):
            def target(self, cos_y, batch):
                return self.s * (cos_y - 0.35)

            def others(self, cos, batch):
                return self.s * F.leaky_relu(cos, 0.1)

    Arguments of its constructor are checked by their annotations (`losses.margins.options`), here and in a config.

    What the literature does to hard negatives is ``hard_negatives``, which every kernel computes. ``others`` is for the
    rest: with it streamed and dense mode agree, the derivative is autograd's, and ``kernels: triton`` is refused. It
    works on a few centres at a time, so a logit may depend on its own cosine and on what ``batch`` holds of its row; it
    leaves ``cos`` as it is, and stands for ``hard_negatives`` and the filter too, unless it calls the base's.

    Args:
        s: scale of the logits.
        interclass_filter: cosines to other centres above it count as 0 (arcface_torch's
            ``interclass_filtering_threshold``, for training on labels in conflict); None keeps all.

    Attributes:
        competitive: whether other classes have a part in the loss; if not, ``loss`` gets nothing of them and the
            centres get no gradient.
        reduction: what the logits of other classes are made into: ``logsumexp``, their log-sum-exp, for losses by a
            softmax; ``softplus``, Σ softplus(other - bias), for losses that decide on each class by itself. With
            sampling the sum is over the classes drawn, not scaled up.
        queue_size: number of past embeddings that train the centres beside the batch (see ``EmbeddingQueue``).
        draws: whether the margin needs ``batch.uniform``, which is None in training for those that do not.
        trains_scale: whether the embeddings' norm has a gradient, so that the backbone must be able to scale them.
        share: how much of the margin is in force, from 0 to 1 (see ``own``); training sets it before a step.

    State lives in buffers: the same on every rank, because it is computed from the global batch, saved with the head,
    and left alone in evaluation mode. Parameters have the same gradient on every rank for the same reason;
    ``CentreOptimizer`` moves them.
    """

    competitive = True
    reduction: Literal["logsumexp", "softplus"] = "logsumexp"
    queue_size = 0
    draws = False
    trains_scale = False
    share = 1.0

    @checked
    def __init__(self, s: Scale = 64.0, interclass_filter: Cosine | None = None) -> None:
        super().__init__()
        self.s = s
        self.interclass_filter = interclass_filter

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]
        for name in ("slope", "linear", "within_s", "shifted", "overrides_others"):
            if name in vars(cls):
                raise TypeError(f"{cls.__name__} overrides {name}, which follows from others: override that instead")

    @property
    def overrides_others(self) -> bool:
        """Whether the margin has an ``others`` of its own."""
        return type(self).others is not Margin.others

    @property
    def within_s(self) -> bool:
        """Whether no other logit leaves [-s, s]."""
        return not self.overrides_others and type(self).hard_negatives is Margin.hard_negatives

    @property
    def linear(self) -> bool:
        """Whether other logits are just ``s * cos``, which the head then computes in place."""
        return self.within_s and self.interclass_filter is None

    @property
    def shifted(self) -> bool:
        """Whether logits need their row's maximum taken from them before exp, lest it leave float32."""
        return not (self.within_s and self.s <= _UNSHIFTED)

    def begin(self, classes: int) -> None:
        """Set what depends on the number of classes that take part in a step; the head calls it once."""

    def update(self, batch: BatchView) -> Any:
        """Bring the state up to date with the batch, before use; what it returns becomes ``batch.state``.

        The other methods read the state from there: a fused update of the centres calls ``others`` for a batch when
        later ones have changed the buffers.
        """
        return None

    def _follow(self, average: Tensor, value: Tensor, rate: float, batch: BatchView) -> None:
        """Move a buffer by ``rate`` towards a () value of a batch, if that ``_counts``."""
        if self.training:
            average.copy_(torch.where(self._counts(value, batch), average.lerp(value, rate), average))

    @staticmethod
    def _counts(value: Tensor, batch: BatchView) -> Tensor:
        """() bool: whether a batch's value may enter the state: there is a class, and all rows are finite.

        A step of other rows is not taken, and one number that is not finite would stay in the state for good.
        """
        finite = (batch.cos_y.isfinite() & batch.norm.isfinite()).all() & value.isfinite()
        return batch.valid.any() & finite

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        """(B,) cosines to the own centres → (B,) target logits, differentiable."""
        return self.s * cos_y

    def without_margin(self, cos_y: Tensor) -> Tensor:
        """(B,) what ``target`` would be without a margin."""
        return self.s * cos_y

    def own(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        """(B,) target logits on their way from none to the whole of the margin, linearly by ``share``.

        So SphereFace annealed its margin (Liu et al., 2017, 4.3); of one on the cosine it is m that grows.
        """
        target = self.target(cos_y, batch)
        return target if self.share == 1 else torch.lerp(self.without_margin(cos_y), target, self.share)

    def hard_negatives(self, batch: BatchView) -> HardNegativeCurve | None:
        """How the logits of hard negatives differ from ``s * cos``; None if they do not."""
        return None

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        """(B, n) cosines to other centres → (B, n) logits, differentiable in ``cos`` only."""
        value = cos
        if (curve := self.hard_negatives(batch)) is not None:
            value = torch.where(cos > curve.limit[:, None], cubic(curve.coefficients, cos), cos)
        if self.interclass_filter is not None:
            value = value.masked_fill(cos > self.interclass_filter, 0.0)
        return self.s * value

    def slope(self, cos: Tensor, batch: BatchView) -> Tensor:
        """(B, n) d others / d cos; not to be overridden: of an ``others`` of its own it is autograd's."""
        if self.overrides_others:
            with torch.enable_grad():
                cos = cos.detach().requires_grad_()
                return torch.autograd.grad(self.others(cos, batch).sum(), cos)[0]
        slope = torch.ones_like(cos)
        if (curve := self.hard_negatives(batch)) is not None:
            a, b, e, _ = curve.coefficients
            slope = torch.where(cos > curve.limit[:, None], (3 * a * cos + 2 * b) * cos + e, slope)
        if self.interclass_filter is not None:
            slope = slope.masked_fill(cos > self.interclass_filter, 0.0)
        return self.s * slope

    def bias(self, batch: BatchView) -> Tensor:
        """() what other logits are above in the reduction ``softplus``, differentiable: 0 unless overridden."""
        return batch.cos_y.new_zeros(())

    def loss(self, target: Tensor, reduced: Tensor | None, batch: BatchView) -> Tensor:
        """(B,) target logits and (B,) the others' ``reduction`` → (B,) losses: cross-entropy unless overridden.

        Of a margin that is not ``competitive``, ``reduced`` is None. Called once a batch, so state
        that depends on it is brought up to date here.
        """
        assert reduced is not None  # the margin is competitive
        return F.softplus(reduced - target)
