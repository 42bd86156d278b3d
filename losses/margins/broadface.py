"""BroadFace: past embeddings, brought up to date, train the class centres beside the batch (Kim et al., ECCV 2020)."""

from losses.margins.arcface import ArcFace
from losses.margins.options import AngleMargin, Cosine, Count, Gradient, Scale


class BroadFace(ArcFace):
    """ArcFace over the batch and a queue of past embeddings; the queue trains the centres, not the encoder."""

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleMargin = 0.5,
        queue_size: Count = 10_000,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, m, gradient=gradient, interclass_filter=interclass_filter)
        self.queue_size = queue_size
