"""ContraFace: two dropout views of one pass through the trunk, a margin loss on each and a contrast between them."""

import torch
from torch import Tensor, nn

from losses import PartialFC
from losses.auxiliary.contrastive import AdaptiveContrast
from losses.head.collective import RowGather, world_size
from pipelines.loading.loader import Batch
from train.recipes.backbones import TwoPart, require
from train.recipes.recipe import DropoutRate, Factor, Recipe, Share, StepResult


class _TwoViews(nn.Module):
    """The backbone, whose dropout and last layers are applied twice: (b, d), (b, d)."""

    def __init__(self, backbone: TwoPart) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone.trunk(images)
        return self.backbone.head(features), self.backbone.head(features)


class ContraFace(Recipe):
    """.5 L(view 1) + .5 L(view 2) + .05 · contrast.

    Args:
        contrast: factor of the contrastive loss.
        momentum: memory of its margin (see ``AdaptiveContrast``).
        dropout: probability in the first phase; ``late_dropout`` from epoch ``late_epoch`` on.
        gather: contrast over the global batch instead of each rank's own.
    """

    views = 2

    def __init__(
        self,
        contrast: Factor = 0.05,
        momentum: Share = 0.99,
        dropout: DropoutRate = 0.4,
        late_dropout: DropoutRate = 0.6,
        late_epoch: Factor | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.contrast_weight, self.gather = contrast, gather
        self.dropout, self.late_dropout, self.late_epoch = dropout, late_dropout, late_epoch
        self.contrast = AdaptiveContrast(momentum=momentum)

    def network(self, backbone: nn.Module) -> nn.Module:
        self._dropouts = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
        return _TwoViews(require(backbone, TwoPart, "contraface", "r18 … r200"))

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        late = self.late_epoch is not None and epoch >= self.late_epoch
        for dropout in self._dropouts:
            dropout.p = self.late_dropout if late else self.dropout
        both = batch.labels.repeat(2)
        head.prepare(both)
        first, second = network(batch.images)
        uniform = self.margin_uniforms(batch, head)
        if uniform is not None:
            uniform = uniform.repeat(2)
        # The mean over both views' rows is half of either loss.
        out = head(torch.cat([first, second]), both, uniform=uniform)
        labels = batch.labels
        if self.gather and world_size() > 1:
            gather = RowGather(len(first), first.device)
            first, second, labels = gather.replicated(first), gather.replicated(second), gather(labels)
        contrast = self.contrast(first, second, labels)
        metrics = {"cosine": out.batch.mean(out.cosine), "contrast": contrast.detach(), "margin": self.contrast.margin}
        return StepResult(out.loss + self.contrast_weight * contrast, metrics)
