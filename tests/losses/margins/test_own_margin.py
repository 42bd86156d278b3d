"""Margins of one's own: what they override holds in every mode, or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses import CentreOptimizer, Margin, PartialFC
from losses.margins.margin import BatchView
from tests.losses import naive
from tests.losses.support import close, problem


class Leaky(Margin):
    """Of cosines below 0 a tenth is left; a margin of .35 on the cosine."""

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.s * (cos_y - 0.35)

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        return self.s * F.leaky_relu(cos, 0.1)


class Doubled(Leaky):
    """Logits of up to 2s, which without their bound overflow."""

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        return 2 * self.s * cos

    def bound(self, batch: BatchView) -> Tensor:
        return 2 * super().bound(batch)


class Bare(Leaky):
    """The cosines themselves, not copied."""

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        return cos


class Filtered(Margin):
    """The base's logits, filter included, a little lower."""

    def target(self, cos_y: Tensor, batch: BatchView) -> Tensor:
        return self.s * (cos_y - 0.35)

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        return super().others(cos, batch) - 1


OTHERS = {
    Leaky: lambda cos, s: torch.where(cos > 0, s * cos, s * cos / 10),
    Doubled: lambda cos, s: 2 * s * cos,
    Bare: lambda cos, s: cos,
    Filtered: lambda cos, s: torch.where(cos > 0.2, 0.0, s * cos) - 1,
}


def formula(margin, s):
    def logits(cos, labels):
        return torch.where(F.one_hot(labels, cos.shape[1]).bool(), s * (cos - 0.35), OTHERS[margin](cos, s))

    return logits


@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("rows", [12, 20])  # few and many for their 16 dimensions: exponentials kept, and not
@pytest.mark.parametrize("margin", OTHERS)
def test_own_others_are_the_formula(margin, rows, mode):
    embeddings, labels, centres = problem(rows)
    s = 80.0 if margin is Doubled else 16.0
    options = dict(interclass_filter=0.2) if margin is Filtered else {}
    head = PartialFC(margin(s, **options), 16, 37, mode=mode, tile=5, entropy=True)
    head.load_state_dict({"weight": centres})
    x = embeddings.clone().requires_grad_()
    out = head(x, labels)
    out.loss.backward()
    loss, ex, ew = naive.head(embeddings, centres, labels, formula(margin, s))
    close(out.loss, loss)
    close(x.grad, ex)
    close(head.weight.grad, ew)
    cos = F.normalize(embeddings.double()) @ F.normalize(centres.double()).T
    p = formula(margin, s)(cos, labels).softmax(1)
    close(out.entropy, -torch.special.xlogy(p, p).sum(1), 5e-4)  # a difference of logits of up to 160


class ByNorm(Leaky):
    """Logits that depend on their row's norm: it has no gradient here, in no mode."""

    def others(self, cos: Tensor, batch: BatchView) -> Tensor:
        return self.s * torch.tanh(cos * batch.norm[:, None] / 10)


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("margin", [Leaky, ByNorm])
def test_streamed_is_dense(margin, rate):
    results = []
    for mode in ("streamed", "dense"):
        embeddings, labels, centres = problem()
        labels[3] = -1
        head = PartialFC(margin(16.0), 16, 37, mode=mode, tile=5, sample_rate=rate)
        head.load_state_dict({"weight": centres})
        optimizer = CentreOptimizer(head, lr=0.1, fused=mode == "streamed")
        x = embeddings.clone().requires_grad_()
        out = head(x, labels)
        out.loss.backward()
        if rate == 1:
            optimizer.step()
        results.append((out.loss.detach(), x.grad, head.weight.detach()))
    for streamed, dense in zip(*results):
        close(streamed, dense)


def test_triton_refuses_others_of_ones_own():
    with pytest.raises(ValueError, match=r"Leaky.*kernels: torch"):
        PartialFC(Leaky(), 16, 37, kernels="triton")


@pytest.mark.parametrize("name", ["slope", "linear"])
def test_what_follows_from_others_is_not_overridden(name):
    with pytest.raises(TypeError, match=f"Steep overrides {name}.*others"):
        type("Steep", (Margin,), {name: lambda *arguments: 1.0})
