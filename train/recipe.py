"""What one step does: a recipe takes a batch and gives the loss. The loop is the same for all of them."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from losses import PartialFC
from pipelines.loader import Batch


@dataclass
class StepResult:
    """A step's loss (scalar, differentiable) and what else is worth a line in the log (scalars on the device)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Plain:
    """The margin loss and nothing else."""

    def __init__(self, backbone: nn.Module, head: PartialFC) -> None:
        self.backbone, self.head = backbone, head

    def step(self, batch: Batch) -> StepResult:
        """Embed the batch and ask the head for the loss."""
        out = self.head(self.backbone(batch.images), batch.labels, uniform=batch.numbers[:, 0])
        return StepResult(out.loss, {"cosine": out.rows.mean(out.cosine)})


RECIPES = {"plain": Plain}


def create_recipe(name: str, backbone: nn.Module, head: PartialFC, **options: Any) -> Plain:
    """A recipe by name."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    try:
        return RECIPES[name](backbone, head, **options)
    except TypeError as error:
        raise ValueError(f"recipe {name!r}: {error}") from None
