"""What one step does: a recipe takes a batch and gives the loss. The loop is the same for all of them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluate.features.ranks import World
from losses import PartialFC
from pipelines.common.arguments import checked
from pipelines.common.transfers import to_device
from pipelines.loading.landmarks import Landmarks
from pipelines.loading.loader import Batch
from pipelines.sources.source import Source


@dataclass
class StepResult:
    """A step's loss (scalar, differentiable) and what else is worth a line in the log (scalars on the device)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a recipe may know of the run whose part it is.

    Attributes:
        source: the images.
        output: the run's folder.
        embedding_size: of the network that is trained.
        autocast: the dtype of the arithmetic; None for float32.
        threads: of the decoding.
        max_bad_fraction: of the images that cannot be read.
        landmarks: of the images, where the network that is trained wants some.
    """

    source: Source
    world: World
    output: Path
    embedding_size: int
    autocast: torch.dtype | None
    threads: int
    max_bad_fraction: float
    landmarks: Landmarks | None = None


class Recipe(nn.Module):
    """The margin loss and nothing else; other recipes add to it.

    A recipe's parameters are trained with the backbone's (at ``optim.lr``, its gradients averaged over the ranks), and
    saved with its buffers. A network that it uses as it is, such as a teacher, is neither: hide it in a list, or
    in another object that is no module.

    Attributes:
        num_uniforms: uniform random numbers that a sample's step needs, beside the margin's one. They do not depend on
            the number of ranks.
        clean_view: ask for the images before augmentation too (``batch.clean``).
        entropy: ask the head for softmax entropies and probabilities (``out.entropy``, ``out.probability``).
        trains_scale: train the weight of the last batch norm, which iresnets keep at 1 (`unfreeze_scale`).
        second_pass: share of the images that pass through the network once more, without gradient.
    """

    num_uniforms = 0
    clean_view = False
    entropy = False
    trains_scale = False
    second_pass: float = 0.0

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def begin(self, run: Run) -> None:
        """What is to be done before a run begins or goes on, and before `network`; all ranks call.

        Parameters that depend on the run may be made here; the planner, which knows of no run, does without.
        """

    def network(self, backbone: nn.Module) -> nn.Module:
        """What is called on ``batch.inputs`` in training, around the backbone whose weights it trains.

        A recipe that needs more than embeddings asks the backbone for it (`train.recipes.backbones`). Parameters that
        depend on the backbone's size may be made here.
        """
        return backbone

    def views(self, epoch: float) -> int:
        """Embeddings of each image that the head has in a step of this epoch: its rows. 0: it is not called.

        Where it is one, the head has drawn the classes of ``batch.labels`` when ``step`` is called. Others know their
        rows' labels and call ``head.prepare`` with them before the network runs.
        """
        return 1

    @staticmethod
    def margin_uniforms(batch: Batch, head: PartialFC) -> Tensor | None:
        """(b,) the uniform random number of each sample that belongs to the margin, on the device; None if it has no
        use for one."""
        return to_device(batch.uniforms[:, 0], batch.labels.device) if head.margin.draws else None

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        """The loss of a batch; ``network`` is this recipe's, possibly replicated over the ranks."""
        out = head(network(*batch.inputs), batch.labels, uniform=self.margin_uniforms(batch, head))
        return StepResult(out.loss, {"cosine": out.batch.mean(out.cosine)})
