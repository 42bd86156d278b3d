"""TopoFR (Dan et al., NeurIPS 2024): structure alignment of embeddings with images, and weights for hard samples."""

import torch
from torch import nn

from losses import PartialFC
from losses.auxiliary.hardness import hardness_weights
from losses.auxiliary.topology import Cloud, topological_loss
from losses.head.collective import RowGather, world_size
from losses.margins.options import Factor
from pipelines.loading.loader import Batch
from train.recipes.backbones import last_norm
from train.recipes.recipe import Recipe, StepResult


class TopoFR(Recipe):
    """Margin loss weighted by hardness (SDE) plus the topological loss of clean images and embeddings (PTSA).

    Use it with ``data.augment: rsp``.

    The topological loss compares distances of embeddings, not normalised, with those of images, all in [0, 1]. So the
    network needs a say in the scale of its embeddings (``trains_scale``), which the margin loss does not see. At 1 they
    are some 20 or 30 apart, images parts of 1: the topological loss outweighs the margin loss, and what it cannot do by
    the scale it does by drawing the embeddings together.

    The mixture that says which samples are hard is fitted to the global batch, the same on any number of ranks. The
    published code fits one to each GPU's batch.

    Args:
        topology: factor of the topological loss, .1 as published.
        gather: take the topology of the global batch instead of each rank's own.
        fit_scale: start at the scale of the images; False is the published code's start (see ``network``).
        confidence_weight: weigh rows by 1 - p_y, too, as in the paper; False is the published code, where p_y becomes
            an integer, 0, and so this weight 1.
    """

    clean_view = True
    entropy = True
    trains_scale = True

    def __init__(
        self,
        topology: Factor = 0.1,
        gather: bool = False,
        fit_scale: bool = True,
        confidence_weight: bool = True,
    ) -> None:
        super().__init__()
        self.topology, self.gather = topology, gather
        self.fit_scale, self.confidence_weight = fit_scale, confidence_weight

    def network(self, backbone: nn.Module) -> nn.Module:
        """The backbone, with ``fit_scale`` at the scale of the images.

        The published code trains the weight of the last batch norm from 1 on; with a small data set that is too late.
        Here it starts at 1/(2·√d) for d dimensions, the factor by which the distances of images are multiplied, d being
        their values. Where ``model.freeze`` or ``model.lora`` keeps that weight, the norm stays as it is.
        """
        norm = last_norm(backbone)
        if self.fit_scale and norm is not None and norm.affine and norm.weight.requires_grad:
            with torch.no_grad():  # by one factor, so that embeddings of `init_from` keep their directions
                factor = 0.5 / torch.linalg.vector_norm(norm.weight)
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
        return backbone

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        """The loss. Trees and mixture are the host's work: it finds the images' tree while the device has the network
        before it, the embeddings' while it has the head, and waits for the head's result last."""
        assert batch.clean is not None  # for `clean_view` asks for it
        replicated = self.gather and world_size() > 1
        gather = RowGather(len(batch.clean), batch.clean.device)
        images = Cloud(gather(batch.clean.contiguous()) if replicated else batch.clean)
        embeddings = network(*batch.inputs).float()
        cloud = Cloud(gather.replicated(embeddings) if replicated else embeddings)
        out = head(embeddings, batch.labels, uniform=self.margin_uniforms(batch, head))
        topology = topological_loss(images, cloud, replicated)
        probability = out.probability if self.confidence_weight else None
        weights = hardness_weights(out.entropy, probability, out.batch.valid)
        loss = out.batch.mean(weights * out.row_losses)
        metrics = {"cosine": out.batch.mean(out.cosine), "row_weight": out.batch.mean(weights)}
        metrics["topology"] = topology.detach()
        return StepResult(loss + self.topology * topology, metrics)
