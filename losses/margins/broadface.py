"""BroadFace: past embeddings, brought up to date, train the class centres beside the batch (Kim et al., ECCV 2020)."""

from typing import Annotated

from pydantic import Field

from losses.margins.arcface import ArcFace
from losses.margins.combined import Gradient
from losses.margins.margin import AngleMargin, Cosine, Scale
from pipelines.common.errors import UserError


class BroadFace(ArcFace):
    """ArcFace over the batch and a queue of past embeddings; the queue trains the centres, not the encoder."""

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleMargin = 0.5,
        queue_size: Annotated[int, Field(ge=1)] = 10_000,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, m, gradient=gradient, interclass_filter=interclass_filter)
        if queue_size < 1:
            raise UserError(f"queue_size is a number of embeddings, at least 1, not {queue_size}")
        self.queue_size = queue_size
