"""TopoFR (Dan et al., NeurIPS 2024): structure alignment of embeddings with images, and weights for hard samples."""

from torch import nn

from losses import PartialFC
from losses.collective import RowGather, world_size
from losses.hardness import hardness_weights
from losses.topology import topological_loss
from pipelines.loader import Batch
from train.recipes.recipe import Recipe, StepResult


class TopoFR(Recipe):
    """Margin loss weighted by hardness (SDE) plus the topological loss of clean images and embeddings (PTSA).

    Use it with ``data.augment: rsp``.

    Args:
        topology: factor of the topological loss, .1 as published. It compares embeddings as they are with images; where
            it outgrows the margin loss (a small data set or a small scale s), the embeddings draw together: lower it.
        gather: take the topology of the global batch instead of each rank's own.
    """

    clean_view = True
    entropy = True

    def __init__(self, topology: float = 0.1, gather: bool = False) -> None:
        super().__init__()
        self.topology, self.gather = topology, gather

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        embeddings = network(batch.images).float()
        out = head(embeddings, batch.labels, uniform=self.margin_numbers(batch))
        weights = hardness_weights(out.entropy, out.row_losses, out.rows.valid)
        loss = out.rows.mean(weights * out.row_losses)
        metrics = {"cosine": out.rows.mean(out.cosine), "row_weight": out.rows.mean(weights)}
        images = batch.clean
        if self.gather and world_size() > 1:
            gather = RowGather(len(embeddings), embeddings.device)
            images, embeddings = gather(images.contiguous()), gather.replicated(embeddings)
        topology = topological_loss(images, embeddings)
        metrics["topology"] = topology.detach()
        return StepResult(loss + self.topology * topology, metrics)
