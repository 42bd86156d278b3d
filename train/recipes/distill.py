"""Distillation: embeddings like those of a network that is there already, beside the margin loss or instead of it."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from evaluate.features.network import load_network
from losses import PartialFC
from losses.auxiliary.distillation import cosine_distance, relational_distance
from losses.head.collective import RowGather
from losses.margins.options import Factor
from pipelines.common.command import say
from pipelines.common.errors import UserError
from pipelines.loading.loader import Batch
from train.recipes.recipe import Recipe, Run, StepResult
from train.recipes.teacher import PresentTeacher, Teacher, stored_teacher
from train.section import LocalPath


class Distill(Recipe):
    """margin · the margin loss + cosine · mean(1 - cos) + relational · RKD's distances, to a teacher's embeddings.

    Both distances are of the global batch. Where the teacher's embeddings have another size, a linear layer that is
    trained with the rest takes the student's to it, for the cosines; the relational loss needs none.

    Args:
        teacher: run folder, file of weights or ``.onnx`` file, as the commands of ``evaluate`` take it for
            ``--checkpoint``.
        view: what the teacher sees. ``clean``: each image without augmentation, mirrored or not as the batch's, at the
            teacher's own size. That is computed once for the data set and then read from the disk. ``same``: the
            batch's images, computed in every step.
        cache: folder of the embeddings of ``clean``, for several runs to share; by default ``teacher`` in the run's
            own. What other data or another teacher left there is not mixed in.
        margin: factor of the margin loss. Without it the class centres stay as they are.
        cosine: factor of the cosine distance (`cosine_distance`).
        relational: factor of the relational distance (`relational_distance`).
    """

    def __init__(
        self,
        teacher: LocalPath,
        view: Literal["clean", "same"] = "clean",
        cache: LocalPath | None = None,
        margin: Factor = 1.0,
        cosine: Factor = 10.0,
        relational: Factor = 0.0,
    ) -> None:
        super().__init__()
        if not cosine and not relational:
            raise UserError("recipe distill: set the factor cosine or relational, or take recipe plain")
        self.path, self.view, self.cache = Path(teacher), view, cache
        self.margin, self.cosine, self.relational = margin, cosine, relational
        self.teacher: Teacher | None = None
        self.projection: nn.Linear | None = None

    def begin(self, run: Run) -> None:
        network = load_network(self.path, device=run.world.device)
        if run.world.main:
            say(f"the teacher {self.path} takes {network.input}, {network.input_size} x {network.input_size}")
        if self.view == "same":
            self.teacher = PresentTeacher(network, run.world.device)
        else:
            self.teacher = stored_teacher(network, Path(self.cache or run.output / "teacher"), run)
        if self.cosine and self.teacher.dimension != run.embedding_size:
            self.projection = nn.Linear(run.embedding_size, self.teacher.dimension, bias=False)

    def views(self, epoch: float) -> int:
        return 1 if self.margin else 0

    def step(self, batch: Batch, network: nn.Module, head: PartialFC, epoch: float) -> StepResult:
        assert self.teacher is not None  # for `begin` comes first
        targets = self.teacher(batch)
        embeddings = network(*batch.inputs).float()
        terms, metrics = [], {}
        if self.margin:
            out = head(embeddings, batch.labels, uniform=self.margin_uniforms(batch, head))
            terms.append(self.margin * out.loss)
            metrics["cosine"] = out.batch.mean(out.cosine)
        gather = RowGather(len(embeddings), embeddings.device)
        students, teachers = gather.replicated(embeddings), gather(targets)
        if self.cosine:
            distance = cosine_distance(self._projected(students), teachers)
            terms.append(self.cosine * distance)
            metrics["teacher_cosine"] = 1 - distance.detach()
        if self.relational:
            distance = relational_distance(students, teachers)
            terms.append(self.relational * distance)
            metrics["relational"] = distance.detach()
        return StepResult(torch.stack(terms).sum(), metrics)

    def _projected(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.projection is None:
            return embeddings
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.projection(embeddings)
