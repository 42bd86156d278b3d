"""ContraFace: two dropout views of one pass through the trunk, a margin loss on each and a contrast between them."""

import torch
from torch import Tensor, nn

from losses import PartialFC
from losses.auxiliary.contrastive import AdaptiveContrast
from losses.head.collective import RowGather, world_size
from losses.margins.options import Factor, Share
from models.layers import DropRate
from pipelines.loading.loader import Batch
from train.recipes.backbones import TwoPart, require
from train.recipes.recipe import Recipe, StepResult


class _Views(nn.Module):
    """The backbone, whose dropout and last layers are applied once a view: (b, d) each."""

    def __init__(self, backbone: TwoPart) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, views: int = 2) -> tuple[Tensor, ...]:
        features = self.backbone.trunk(images)
        return tuple(self.backbone.head(features) for _ in range(views))


class ContraFace(Recipe):
    """The plain loss before ``late_epoch``; from there on .5 L(view 1) + .5 L(view 2) + .05 · contrast.

    Args:
        contrast: factor of the contrastive loss.
        momentum: memory of its margin (see ``AdaptiveContrast``).
        dropout: probability in the first phase; with this recipe ``model.dropout`` does nothing.
        late_dropout: and in the second.
        late_epoch: where the second begins; in the published runs the learning rate falls there for the first time.
        gather: contrast over the global batch instead of each rank's own.
    """

    def __init__(
        self,
        contrast: Factor = 0.05,
        momentum: Share = 0.99,
        dropout: DropRate = 0.4,
        late_dropout: DropRate = 0.6,
        late_epoch: Factor = 0.0,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.contrast_weight, self.gather = contrast, gather
        self.dropout, self.late_dropout, self.late_epoch = dropout, late_dropout, late_epoch
        self.contrast = AdaptiveContrast(momentum=momentum)

    def views(self, epoch: float) -> int:
        return 2 if epoch >= self.late_epoch else 1

    def network(self, backbone: nn.Module) -> nn.Module:
        parts = require(backbone, TwoPart, "contraface", "r18 … r200, or timm/NAME with model.pool=flatten")
        self._dropout = [parts.dropout]  # in a list, as it is no part of this module
        return _Views(parts)

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        views, labels, uniform = self.views(epoch), batch.labels, self.margin_uniforms(batch, head)
        (dropout,) = self._dropout
        dropout.p = self.dropout if views == 1 else self.late_dropout
        if views == 2:
            labels, uniform = labels.repeat(2), None if uniform is None else uniform.repeat(2)
            head.prepare(labels)
        embeddings = network(batch.images, views)
        # The mean over both views' rows is half of either loss.
        out = head(torch.cat(embeddings), labels, uniform=uniform)
        metrics = {"cosine": out.batch.mean(out.cosine)}
        if views == 1:
            return StepResult(out.loss, metrics)
        first, second = embeddings
        contrast = self._contrast(first, second, batch.labels)
        metrics |= {"contrast": contrast.detach(), "margin": self.contrast.margin}
        return StepResult(out.loss + self.contrast_weight * contrast, metrics)

    def _contrast(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        if self.gather and world_size() > 1:
            gather = RowGather(len(first), first.device)
            first, second, labels = gather.replicated(first), gather.replicated(second), gather(labels)
        return self.contrast(first, second, labels)
