"""TransFace (Dan et al., ICCV 2023): perturbed dominant patches, and rows weighted by how hard their patches are."""

import torch
from torch import Tensor, nn

from losses import PartialFC
from losses.margins.options import Share
from models.modes import evaluating
from pipelines.common.transfers import to_device
from pipelines.loading.loader import Batch
from train.recipes.backbones import PatchWeighing, require
from train.recipes.patch_mix import perturb_patches
from train.recipes.recipe import Recipe, StepResult

_TOP = 7


class _WithPatches(nn.Module):
    """The backbone, giving embeddings (b, d), patch weights (b, patches) and patch standard deviations (b, patches)."""

    def __init__(self, backbone: PatchWeighing) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.backbone.forward_patches(images)


class TransFace(Recipe):
    """DPAP on a share of the images, then the margin loss with EHSM's row weights 1 + exp(-mean patch deviation).

    Patches are mixed with those of the rank's own batch, so that part of a step depends on how images fall to ranks.

    Args:
        probability: share of the images that are perturbed.
        weight_gradient: whether the gradient also flows through the row weights; it does not in the published code.
    """

    num_uniforms = 1 + 4 * _TOP

    def __init__(self, probability: Share = 0.2, weight_gradient: bool = False) -> None:
        super().__init__()
        self.probability = self.second_pass = probability
        self.weight_gradient = weight_gradient

    def network(self, backbone: nn.Module) -> nn.Module:
        weighing = require(backbone, PatchWeighing, "transface", "transface_t … transface_l")
        network = _WithPatches(weighing)
        self._network = [network]  # in a list, so that its weights are not this module's
        self._patch_size = weighing.patch_size
        return network

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        images = self._perturbed(batch)
        embeddings, _, deviations = network(images)
        weights = 1 + torch.exp(-deviations.float().mean(1))
        if not self.weight_gradient:
            weights = weights.detach()
        out = head(embeddings, batch.labels, weights, uniform=self.margin_uniforms(batch, head))
        return StepResult(out.loss, {"cosine": out.batch.mean(out.cosine), "row_weight": weights.detach().mean()})

    @torch.no_grad()
    def _perturbed(self, batch: Batch) -> Tensor:
        """Only the chosen images pass through the network once more, in evaluation mode: batch statistics rest."""
        chosen = (batch.uniforms[:, 1] < self.probability).nonzero()[:, 0]
        if not len(chosen):
            return batch.images
        device = batch.images.device
        uniforms = to_device(batch.uniforms[chosen, 2:].unflatten(1, (_TOP, 4)), device)
        chosen = to_device(chosen, device)
        (network,) = self._network
        with evaluating(network):
            _, weights, _ = network.forward(batch.images[chosen])  # not compiled: their number differs each time
        return perturb_patches(batch.images, chosen, weights.float(), uniforms, _TOP, self._patch_size)
